"""LaMDA: a square matrix between a frozen A and a B whose columns stop training one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from ...address import WHOLE
from ...bind import LowRank
from ...core import ZEROS, CommonweightError, Plan, Pool, Read, Site, Use, config, kaiming, option
from ...core.schedule import Edit, Moment, Pools, State
from ..registry import method
from .lora import pick, wrong_pairs


@config
class LaMDA:
    rank: int = option(16, "rank r: r * r numbers of a site are trained to the end", ge=1)
    alpha: float | None = option(None, "numerator of the scale alpha / rank; none: 2 * rank", gt=0)
    dropout: float = option(0.0, "dropout on the input of A, in training", ge=0, le=0.95)
    ranks: tuple[tuple[str, int], ...] = option(
        (), "(pattern, rank) pairs: other ranks for some sites, first match wins (LaMDA++)", globs=True
    )
    freeze: float = option(0.3, "share of the steps over which B's columns are frozen", ge=0, le=1)
    compat: Literal["paper", "official"] = option(
        "paper", "official: as in the released code, where all but three columns train to the end"
    )

    def check(self) -> str | None:
        return wrong_pairs(ranks=self.ranks)


@dataclass(frozen=True)
class Freezing:
    """After t of T steps the first r t / (share T) columns of B stay as they are: their values are put back."""

    config: LaMDA

    def begin(self, plan: Plan, pools: Pools, steps: int) -> tuple[State, Edit]:
        if not self.config.freeze:
            raise CommonweightError(
                "lamda: freeze=0 freezes all columns of B from the start, where they are zero, so that nothing is "
                "learned; give a share of the steps above 0"
            )
        return {n: p.clone() for n, p in pools.items() if n.endswith(".B")}, Edit()

    def settled(self, step: int, steps: int) -> bool:
        return True

    def columns(self, step: int, steps: int, rank: int) -> int:
        """Those of `rank` that are frozen while the step after `step` is taken."""
        over = self.config.freeze * steps
        parts = rank if self.config.compat == "paper" else 1
        return rank if not over else min(rank, int(parts * step / over))

    def after(self, at: Moment, state: State) -> tuple[State, Edit]:
        values, moments, rest, any_ = {}, {}, set(), False
        for n, old in state.items():
            r = old.shape[1]
            then, now = (self.columns(s, at.steps, r) for s in (at.step - 1, at.step))
            still = torch.arange(r, device=old.device)
            values[n] = torch.where(still < then, old, at.pools[n])
            moments[n] = (still >= now).to(old).expand_as(old)
            any_ = any_ or now > 0
            if now == r:
                rest.add(n)
        return (values, Edit(values, {}, frozenset(rest), {}, moments)) if any_ else (values, Edit())


@method(
    "lamda",
    LaMDA,
    paper="LaMDA: Large Model Fine-Tuning via Spectrally Decomposed Low-Dimensional Adaptation, arXiv 2406.12832",
    formula="sum over sites of r * r, and r d_out while columns of B train",
    lr=2e-3,
    schedule=lambda config, plan: Freezing(config),
)
def plan(sites: Sequence[Site], config: LaMDA) -> Plan:
    """h = W0 x + (alpha / r) B R A x; A uniform and frozen, R uniform, B zero at the start.

    Shapes: A (r, d_in), R (r, r), B (d_out, r). Linear in: R and B, each alone. The file holds R and B, A comes from
    the seed. Source: arXiv 2406.12832, abstract; github.com/ArminAzizi98/LaMDA @8ad34b4, whose start this is; the
    paper's spectral one is in no source that could be read. LaMDA++ gives each site a rank by the "normalized spectrum"
    of its weight: `ranks` takes them, but the rule is in no source either (the repository has none), and is not ours to
    invent. The released code counts
    frozen columns without the factor r, so that B of rank 32 ends with 29 that train; compat="official" does so.
    Differs: a frozen column does not move at all, where the code leaves it to old moments and the weight decay.
    `adapt` and `Scheduled` freeze columns; other loops train all of B.
    """
    pools, uses = {}, []
    for s in sites:
        r = int(pick(config.ranks, s.name, config.rank))
        bind = LowRank((2.0 * r if config.alpha is None else config.alpha) / r, config.dropout)
        pools[f"{s.name}.A"] = Pool((r, s.inp), kaiming(s.inp), train=False, save=False)
        pools[f"{s.name}.R"], pools[f"{s.name}.B"] = Pool((r, r), kaiming(r)), Pool((s.out, r), ZEROS)
        reads = {k: Read(WHOLE, (f"{s.name}.{p}",)) for k, p in (("A", "A"), ("M", "R"), ("B", "B"))}
        uses.append(Use(s.name, bind, reads))
    return Plan(pools, tuple(uses))
