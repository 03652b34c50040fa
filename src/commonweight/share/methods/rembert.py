"""RemBERT's untying: a narrow table of input tokens, and a full one at the output."""

from __future__ import annotations

from ...builder import Anatomy, Layout, tied
from ...core import config, option
from .. import ends
from ..registry import method


@config
class RemBERT:
    rank: int = option(256, "width of the input table", ge=1)


@method(
    "rembert",
    RemBERT,
    paper="Rethinking Embedding Coupling in Pre-trained Language Models, arXiv 2010.12821",
    shares="nothing: the input table is narrow, and apart from the output layer's",
    sizes=lambda depth: [{"rank": 64}, {"rank": 256}],
)
def plan(anatomy: Anatomy, config: RemBERT) -> Layout:
    """x = T[id] M in the place of E[id]; the output layer keeps E, or what it has.

    Shapes: T (V, r), M (r, d). Parameters: V r + r d, and V d for the output where it was tied to the input. With r = d
    it is the original. Source: arXiv 2010.12821; transformers' rembert. Differs: T and M begin as the SVD of a
    pretrained table; positions and token types keep their width, and there is no wider output of 1664.
    Raises: CommonweightError for a model without a table of input tokens.
    """
    layout = tied(anatomy, range(anatomy.depth), lambda at, weight: None)
    return ends.thin(layout, anatomy, config.rank, "rembert")
