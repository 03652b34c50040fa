"""Intra-layer recurrence: each layer several times in place."""

from __future__ import annotations

from typing import Literal

from ...address import WHOLE
from ...bind import Before
from ...builder import Anatomy, Layout, Unit, Weight, relaxed, tied
from ...core import ZEROS, Pool, Read, Use, config, option
from .. import maps
from ..registry import method


@config
class ILR:
    loop_map: tuple[int, ...] = option((), "how often each unit runs: [4, 2, 1, 1]; empty: two times, half the units")
    init: Literal["average", "lower", "stepwise"] = option(
        "average",
        "what a unit begins with: the mean of the layers it stands for, the first of them, or one at equal steps",
    )
    loop_embedding: bool = option(False, "a vector of its own for each use, added to the block's input")
    share_norms: bool = option(True, "norms are the unit's too; else each use has its own")
    relax: int = option(0, "rank of an update for each use, as relaxed recursion has it; 0: none", ge=0)

    def check(self) -> str | None:
        return "loop_map holds numbers >= 1" if any(r < 1 for r in self.loop_map) else None


@method(
    "ilr",
    ILR,
    paper="Intra-Layer Recurrence in Transformers for Language Modeling, arXiv 2505.01855",
    shares="each layer with itself, run several times in place",
    sizes=lambda depth: [{"loop_map": (2,) * (depth // 2)}, {"loop_map": (3,) * (depth // 3)}],
)
def plan(anatomy: Anatomy, config: ILR) -> Layout:
    """h <- layer_l(h), r_l times. The depth is the sum of the map; depth i stands for layer
    round(linspace(0, L - 1))[i].

    Parameters: one layer for each entry of the map. A map of L ones is the original. Source: arXiv 2505.01855, section
    3. Differs: the paper trains from scratch, units here begin with a pretrained model's layers; a loop embedding is a
    vector alone, without the official code's scalar, which it can absorb.
    """
    depth = anatomy.depth
    loops = config.loop_map or (2,) * max(1, depth // 2)
    like = maps.spaced(0, depth - 1, sum(loops))
    unit_at = [k for k, r in enumerate(loops) for _ in range(r)]
    spans = [tuple(dict.fromkeys(like[i] for i, k in enumerate(unit_at) if k == unit)) for unit in range(len(loops))]
    steps = maps.spaced(0, depth - 1, len(loops))
    fill = {"average": lambda k: spans[k], "lower": lambda k: spans[k][:1], "stepwise": lambda k: (steps[k],)}

    def unit(at: int, weight: Weight) -> Unit | None:
        if weight.kind == "norm" and not config.share_norms:
            return None
        k = unit_at[at]
        return Unit(f"unit{k}", fill[config.init](k))

    layout = tied(anatomy, like, unit)
    if config.loop_embedding:
        e = Pool((anatomy.width,), ZEROS, dtype=anatomy.blocks[0][0].dtype)
        uses = [Use(str(i), Before(), {"e": Read(WHOLE, (f"loop.{i}",))}) for i in range(len(like))]
        layout = layout.plus({f"loop.{i}": e for i in range(len(like))}, uses)
    return relaxed(layout, anatomy, config.relax) if config.relax else layout
