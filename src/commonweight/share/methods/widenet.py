"""WideNet: one attention and one mixture of experts at every depth, norms each depth's own."""

from __future__ import annotations

from itertools import pairwise

from ...bind import Experts
from ...builder import Anatomy, Layout, Unit, Weight, tied
from ...core import config, option
from .. import maps
from ..experts import mixed
from ..registry import method


@config
class WideNet:
    experts: int = option(4, "experts E of the one mixture", ge=1)
    k: int = option(2, "experts that a token takes", ge=1)
    capacity: float = option(1.2, "in training an expert takes int(T capacity k / E) of T tokens", gt=0)
    seed: int = option(0, "of the router's first numbers", ge=0)

    def check(self) -> str | None:
        return f"k={self.k} of {self.experts} experts" if self.k > self.experts else None


@method(
    "widenet",
    WideNet,
    paper="Go Wider Instead of Deeper, arXiv 2107.11817",
    shares="one attention and one mixture of experts at every depth",
    sizes=lambda depth: [{"experts": 4}, {"experts": 8}],
)
def plan(anatomy: Anatomy, config: WideNet) -> Layout:
    """y = x + att(norm_l x); y + sum over k of E experts of p_e ffn_e(norm'_l y): the router is shared as well.

    Parameters: one attention, E feed-forward networks, E d, and the norms. E = k = 1 with capacity >= 1 is the tied
    layer with norms of its own. Source: arXiv 2107.11817; code XueFuzhao/WideNet_Code. Differs: expert e begins with
    the mean of the e-th stretch of the pretrained layers, the attention with the mean of all; there is no balancing
    loss; capacity is of training alone, since a model that is given one token at a time would have room for none.
    Raises: CommonweightError where the feed-forward network of a block is no module of its own (BERT).
    """
    depth = anatomy.depth
    everywhere = tuple(range(depth))
    cuts = [depth * e // config.experts for e in range(config.experts + 1)]
    stretches = [tuple(range(a, max(a + 1, b))) for a, b in pairwise(cuts)]

    def unit(at: int, weight: Weight) -> Unit | None:
        return None if weight.kind == "norm" else Unit("all", everywhere)

    whole = tied(anatomy, maps.spaced(0, depth - 1, depth), unit, config.seed)
    return mixed("widenet", whole, anatomy, Experts(config.experts, config.k, config.capacity), stretches)
