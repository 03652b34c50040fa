"""Recursive and Relaxed Recursive Transformers: K units looped over the depth, a low-rank update for each depth."""

from __future__ import annotations

from typing import Literal

from ...builder import Anatomy, Layout, Unit, Weight, relaxed, tied
from ...core import config, option
from .. import maps
from ..registry import method


@config
class Recursive:
    loops: int = option(2, "how often each unit is used; the depth is cut to a multiple of it", ge=1)
    order: Literal["cycle", "sequence", "middle_cycle", "middle_sequence"] = option(
        "cycle", "cycle: 0 1 0 1; sequence: 0 0 1 1; middle_: the first and the last layer are their own"
    )
    init: Literal["stepwise", "average", "lower", "upper", "random"] = option(
        "stepwise", "which layers a unit begins with: stepwise, average, lower, upper or random"
    )
    relax: int = option(0, "rank of the update of each linear layer at each depth; 0: none (strictly recursive)", ge=0)
    relax_init: Literal["svd", "zero"] = option("svd", "svd: of what a layer loses to its unit; zero: as LoRA begins")
    share_norms: bool = option(True, "norms are the unit's too; else each depth has its own")
    share_biases: bool = option(True, "biases are the unit's too; else each depth has its own")
    seed: int = option(0, "of init=random", ge=0)


@method(
    "recursive",
    Recursive,
    paper="Relaxed Recursive Transformers, arXiv 2410.20672",
    shares="whole layers, looped; with relax, plus a low-rank update for each depth",
    sizes=lambda depth: [{"loops": 2}, {"loops": 3}, {"loops": 2, "relax": 16}, {"loops": 3, "relax": 16}],
)
def plan(anatomy: Anatomy, config: Recursive) -> Layout:
    """h_l = f(h_(l-1); unit(l) + B_l A_l), unit(l) = l mod K for the cycle.

    Parameters: K layers, and r (in + out) for each relaxed matrix at each depth. With the full rank, and norms and
    biases of each depth's own, it is the original.
    Source: arXiv 2410.20672, eq. (2) to (5); maps and init as in the authors' code; K = floor(L / loops).
    Differs: biases are tied as well, which that code forgets, unless share_biases=False; the scale of the update is 1,
    as its SVD init needs.
    """
    depth, loops, order = anatomy.depth, config.loops, config.order
    middle = order.startswith("middle")
    units = maps.units_of(depth, loops, order)
    like = maps.kept(depth, units, loops, middle)
    looped = like[1:-1] if middle else like

    def unit(at: int, weight: Weight) -> Unit | None:
        place = at - 1 if middle else at
        if not 0 <= place < len(looped) or _private(weight, config):
            return None
        k = maps.unit_at(place, units, loops, order)
        layers = maps.fillers(k, units, loops, order, config.init, config.seed)
        return Unit(f"unit{k}", tuple(looped[p] for p in layers))

    layout = tied(anatomy, like, unit, config.seed)
    return relaxed(layout, anatomy, config.relax, config.relax_init) if config.relax else layout


def _private(weight: Weight, config: Recursive) -> bool:
    """What low rank does not reach, and costs little."""
    return (weight.kind == "norm" and not config.share_norms) or (weight.kind == "bias" and not config.share_biases)
