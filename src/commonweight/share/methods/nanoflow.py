"""NanoFlow: one estimator at every step, told by a vector which step it is, with gates of its own for each."""

from __future__ import annotations

from typing import Literal

from ...address import WHOLE
from ...bind import Before, Step
from ...builder import Anatomy, Layout, Unit, Weight, tied
from ...core import ONES, ZEROS, CommonweightError, Pool, Read, Use, config, option
from .. import maps
from ..registry import method


@config
class NanoFlow:
    units: int = option(1, "different blocks; each runs its share of the depth in a row", ge=1)
    init: Literal["stepwise", "average", "lower", "upper"] = option("average", "which layers a block begins with")
    embedding: bool = option(True, "a vector for each step, added to the block's input")
    gates: bool = option(True, "a factor for each step and channel of what the block adds")


@method(
    "nanoflow",
    NanoFlow,
    paper="NanoFlow: Scalable Normalizing Flows with Sublinear Parameter Complexity, arXiv 2006.06280",
    shares="one block at every depth, with a vector and gates of each depth's own",
    sizes=lambda depth: [{}, {"units": 2}],
)
def plan(anatomy: Anatomy, config: NanoFlow) -> Layout:
    """h <- h + g_k (block(h + e_k) - h), e_k and g_k (d,) of step k.

    Parameters: `units` blocks, 2 d for each depth. With e = 0 and g = 1, as it begins, it is the tied model. Source:
    arXiv 2006.06280, sections 3.2 and 3.3; code L0SG/NanoFlow, nanoflow.py. Differs: theirs is a normalising flow of
    sound, a new model; what carries over to a pretrained one is here: the shared estimator, its step embedding (H e_k
    of theirs, with H multiplied in, as they do after training, and added before the block, not within its gates) and
    the gates of its residuals (`multgate`, one for each block here, one for each layer within there). Not built: the
    flow, its 1 x 1 projections to log s and t, its inverse.
    """
    depth, units = anatomy.depth, config.units
    if units > depth:
        raise CommonweightError(f"nanoflow: {units} units of {depth} layers")
    at_unit = [i * units // depth for i in range(depth)]

    def unit(at: int, weight: Weight) -> Unit | None:
        mine = [i for i in range(depth) if at_unit[i] == at_unit[at]]
        layers = maps.fillers(0, 1, len(mine), "cycle", config.init)
        return Unit(f"unit{at_unit[at]}", tuple(mine[i] for i in layers))

    layout = tied(anatomy, range(depth), unit)
    size, dtype = (anatomy.width,), anatomy.blocks[0][0].dtype
    pools: dict[str, Pool] = {}
    uses = []
    for at in range(depth):
        if config.embedding:
            pools[f"embedding.{at}"] = Pool(size, ZEROS, dtype=dtype)
            uses.append(Use(str(at), Before(), {"e": Read(WHOLE, (f"embedding.{at}",))}))
        if config.gates:
            pools[f"gates.{at}"] = Pool(size, ONES, dtype=dtype)
            uses.append(Use(str(at), Step(), {"g": Read(WHOLE, (f"gates.{at}",))}))
    return layout.plus(pools, uses)
