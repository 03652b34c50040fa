"""DAS: a search finds the blocks that can be left out; adapters stand in their places."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...address import WHOLE
from ...bind import Instead
from ...core import ONES, ZEROS, CommonweightError, Normal, Plan, Pool, Read, Site, Use, config, counted, fits, option
from ...core.schedule import Edit, Moment, Pools, State
from ..drawn import credited, drawn, sets
from ..registry import method

SLOTS = "norm", "norm_bias", "down", "down_bias", "up", "up_bias"


@config
class DAS:
    size: int | None = option(None, "width r of an adapter; none: 3/8 of the block's, as 288 of 768", ge=1)
    skip: int | None = option(None, "blocks to leave out; none: a third of them, as 4 of 12", ge=1)
    search: float = option(0.3, "share of a run's steps in which blocks are drawn", ge=0, le=1)
    warm: float = option(0.1, "share of a run's steps before the first look at what they are worth", ge=0, le=1)
    every: int = option(10, "steps between two looks", ge=1)
    draws: int = option(3, "sets of blocks that are compared in a look", ge=2)
    skipped: tuple[str, ...] = option((), "patterns of the blocks that are left out, without a search")


@dataclass(frozen=True)
class Search:
    """a: a score for each block, zero at the start; p = sigmoid(a). Each step leaves out blocks that are drawn by p. A
    look draws sets by p too, R_k = exp(-loss without those of set k), and a_i += (R_k - mean R) p_i (1 - p_i) for i in
    set k. After the search the blocks of the largest a are left out. Adapters of the others rest."""

    config: DAS
    blocks: tuple[str, ...]
    seed: int

    @property
    def many(self) -> int:
        return _many(self.config, len(self.blocks))

    def begin(self, plan: Plan, pools: Pools, steps: int) -> tuple[State, Edit]:
        if not self.blocks:
            return {}, Edit()
        state = {"a": torch.zeros(len(self.blocks), dtype=torch.float64)}
        return state, self.chosen(state, 0, steps)

    def settled(self, step: int, steps: int) -> bool:
        return not self.blocks or step >= self.until(steps)

    def until(self, steps: int) -> int:
        return int(self.config.search * steps)

    def after(self, at: Moment, state: State) -> tuple[State, Edit]:
        c = self.config
        if not self.blocks or at.step > self.until(at.steps):
            return state, Edit()
        if at.step > c.warm * at.steps and at.step % c.every == 0:
            p = torch.sigmoid(state["a"])
            tried = sets(self.seed, f"das/{at.step}", p, self.many, c.draws)
            state = {"a": credited(state["a"], p, tried, lambda mine: at.loss(self.gates(mine)), 1.0)}
        return state, self.chosen(state, at.step, at.steps)

    def chosen(self, state: State, step: int, steps: int) -> Edit:
        a = state["a"]
        if step >= self.until(steps):
            mine = a.argsort(descending=True, stable=True)[: self.many].tolist()
        else:
            mine = drawn(self.seed, f"das/{step}", torch.sigmoid(a), self.many)
        rest = [b for i, b in enumerate(self.blocks) if i not in mine]
        return Edit(values=self.gates(mine), resting=frozenset(f"{b}.{k}" for b in rest for k in SLOTS))

    def gates(self, mine: Sequence[int]) -> dict[str, Tensor]:
        return {f"{b}.open": torch.full((1,), float(i not in mine)) for i, b in enumerate(self.blocks)}


def _many(config: DAS, blocks: int) -> int:
    return config.skip or max(1, blocks // 3)


def _schedule(config: DAS, plan: Plan) -> Search:
    return Search(config, tuple(n.removesuffix(".open") for n in plan.pools if n.endswith(".open")), plan.seed)


def compact(config: DAS, pools: Mapping[str, Tensor]) -> tuple[DAS, Mapping[str, Tensor]]:
    """The adapters of the blocks that are left out, and no gates."""
    shut = tuple(n.removesuffix(".open") for n, p in pools.items() if n.endswith(".open") and not p.any())
    if not shut:
        return config, pools
    return replace(config, skipped=shut), {f"{b}.{k}": pools[f"{b}.{k}"] for b in shut for k in SLOTS}


@method(
    "das",
    DAS,
    paper="Parameter and Computation Efficient Transfer Learning for Vision-Language Pre-trained Models, "
    "arXiv 2309.01479",
    formula="sum over blocks of 2 r d + r + 3 d while it searches; of those that are left out alone in the file",
    kinds=("block",),
    named=(),
    lr=1e-3,
    fresh="blocks are left out from the start: those that are named, or the last ones until a search chooses",
    size=("size",),
    schedule=_schedule,
    compact=compact,
)
def plan(sites: Sequence[Site], config: DAS) -> Plan:
    """y' = x + W_up relu(W_down LN(x) + b_down) + b_up of a block that is left out, x what it is given; others are as
    they were.

    A block that all rows of a pass leave out is not called, if states are all that it gives and no cache counts tokens
    by it. Shapes: W_down (r, d), W_up (d, r), both N(0, 0.02^2), LN's weights (d,). Cost: `draws` forward passes at
    every look. Source: arXiv 2309.01479; github.com/DoubtedSteam/DAS @1d6a0d6, meter_module_search.py,
    efficientmodules.py. A step of the scores has no factor (the published `lr` is not used). Ours: before a search the
    last blocks are left out. Differs: a look reads the
    step's own rows, without dropout, where the code takes a batch of validation rows; lengths of the search are shares
    of a run, as the 3 (the first without looks) of 10 epochs. `adapt` and `Scheduled` search; other loops name blocks
    in `skipped`. Raises: CommonweightError where `skipped` names no block, or fewer blocks are there than `skip`.
    """
    mine = [s for s in sites if any(fits(s.name, p) for p in config.skipped)] if config.skipped else [*sites]
    if not mine:
        raise CommonweightError(
            f"das: skipped={config.skipped!r} names none of the {counted(len(sites), 'block')}, such as {sites[0].name}"
        )
    if not config.skipped and (config.skip or 1) > len(mine):
        raise CommonweightError(f"das: skip={config.skip}, and there are {counted(len(mine), 'block')}; choose fewer")
    pools, uses, last = {}, [], len(mine) - _many(config, len(mine))
    for i, s in enumerate(mine):
        r = config.size or max(1, 3 * s.inp // 8)
        slots = {
            "norm": Pool((s.inp,), ONES),
            "norm_bias": Pool((s.inp,), ZEROS),
            "down": Pool((r, s.inp), Normal(0.02)),
            "down_bias": Pool((r,), ZEROS),
            "up": Pool((s.out, r), Normal(0.02)),
            "up_bias": Pool((s.out,), ZEROS),
        }
        if not config.skipped:
            slots["open"] = Pool((1,), ONES if i < last else ZEROS, train=False)
        pools |= {f"{s.name}.{k}": p for k, p in slots.items()}
        uses.append(Use(s.name, Instead(), {k: Read(WHOLE, (f"{s.name}.{k}",)) for k in slots}))
    return Plan(pools, tuple(uses))
