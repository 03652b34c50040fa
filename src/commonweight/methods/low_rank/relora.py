"""ReLoRA: a low-rank update that is folded into a whole one and begun anew, again and again."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...address import WHOLE
from ...bind import LowRank, Shift
from ...core import ZEROS, Plan, Pool, Read, Rng, Site, Use, config, kaiming, option
from ...core.schedule import Edit, Moment, Pools, State
from ..registry import method


@config
class ReLoRA:
    rank: int = option(8, "rank r of each update", ge=1)
    alpha: float | None = option(None, "numerator of the scale alpha / rank; none: 2 * rank", gt=0)
    dropout: float = option(0.0, "dropout on the input of A, in training", ge=0, le=0.95)
    cycles: int = option(4, "updates, one after the other; the last one is not folded in", ge=1)
    keep: float = option(0.001, "share of the optimiser's moments that stays at a new beginning", ge=0, le=1)
    warmup: float = option(0.1, "share of a cycle, after the first one, over which the rate grows anew", ge=0, le=1)

    @property
    def scale(self) -> float:
        return (2.0 * self.rank if self.alpha is None else self.alpha) / self.rank


@dataclass(frozen=True)
class Restart:
    """At the end of each cycle: dw <- dw + s B A, A drawn anew, B zero, most of the moments forgotten, and the rate
    grows from zero to what the run's own schedule has at the end of this cycle's warm-up."""

    config: ReLoRA
    sites: tuple[str, ...]
    seed: int

    def begin(self, plan: Plan, pools: Pools, steps: int) -> tuple[State, Edit]:
        return {}, Edit(resting=frozenset(f"{s}.dw" for s in self.sites))

    def settled(self, step: int, steps: int) -> bool:
        return True

    def cycle(self, step: int, steps: int) -> tuple[int, int, int]:
        """(number, first step, length) of the cycle in which a step lies; steps count from 1."""
        length = max(1, math.ceil(steps / self.config.cycles))
        n = (step - 1) // length
        return n, n * length + 1, length

    def after(self, at: Moment, state: State) -> tuple[State, Edit]:
        if at.step >= at.steps:
            return state, Edit()
        n, first, length = self.cycle(at.step + 1, at.steps)
        warm = round(self.config.warmup * length)
        done = at.step + 1 - first  # steps of this cycle before the next one
        rate = (done + 1) / (warm + 1) if n and done < warm else 1.0
        trained = [f"{s}.{k}" for s in self.sites for k in "AB"]
        rates = dict.fromkeys(trained, rate)
        if done or not n:
            return state, Edit(rates=rates if n and done <= warm else {})
        values: dict[str, Tensor] = {}
        for s in self.sites:
            A, B = at.pools[f"{s}.A"], at.pools[f"{s}.B"]
            values[f"{s}.dw"] = at.pools[f"{s}.dw"] + self.config.scale * (B @ A)
            drawn = kaiming(A.shape[1])(tuple(A.shape), Rng(self.seed, f"{s}.A/{n}"), None)  # type: ignore[arg-type]
            values[f"{s}.A"], values[f"{s}.B"] = drawn.to(A), torch.zeros_like(B)
        stay = {k: self._stay(at.pools[k], k, n) for k in trained}
        return state, Edit(values=values, moments=stay, rates=rates)

    def _stay(self, p: Tensor, name: str, n: int) -> Tensor:
        """1 for the numbers whose moments stay."""
        return (Rng(self.seed, f"{name}/moments/{n}").uniform(tuple(p.shape)) < self.config.keep).to(p)


@method(
    "relora",
    ReLoRA,
    paper="ReLoRA: High-Rank Training Through Low-Rank Updates, arXiv 2307.05695",
    formula="sum over sites of r (d_in + d_out) at a time; the file holds d_in d_out of what was folded in",
    kinds=("linear", "expert"),
    lr=1e-3,
    size=("rank",),
    schedule=lambda config, plan: Restart(
        config, tuple(u.site for u in plan.uses if isinstance(u.bind, Shift)), plan.seed
    ),
)
def plan(sites: Sequence[Site], config: ReLoRA) -> Plan:
    """W' = W + dw + (alpha / r) B A, dw the sum of the updates before; its rank grows by r with each cycle.

    Shapes: dw (d_out, d_in), A (r, d_in), B (d_out, r). Linear in: each alone. Source: arXiv 2307.05695, algorithm 1;
    github.com/Guitaricet/relora @176f376. Differs: the base, which others read too, keeps W, so that the sum lies in
    the tenant; no full-rank start (train `full` before it), norms and embeddings stay; cycles are shares of the run,
    and the rate between the new beginnings is the recipe's own. Ours: A as LoRA's from the first cycle on, where the
    released code zeroes A as well as B until the first merge.
    """
    pools, uses = {}, []
    for s in sites:
        n = s.name
        pools[f"{n}.dw"] = Pool((s.out, s.inp), ZEROS)
        pools[f"{n}.A"], pools[f"{n}.B"] = Pool((config.rank, s.inp), kaiming(s.inp)), Pool((s.out, config.rank), ZEROS)
        uses.append(Use(n, Shift(), {"dw": Read(WHOLE, (f"{n}.dw",))}))
        reads = {k: Read(WHOLE, (f"{n}.{k}",)) for k in "AB"}
        uses.append(Use(n, LowRank(config.scale, config.dropout), reads))
    return Plan(pools, tuple(uses))
