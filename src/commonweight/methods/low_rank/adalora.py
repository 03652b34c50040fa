"""AdaLoRA: the directions of all updates compete, and training ends with those that mattered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...core import ZEROS, Normal, Plan, Site, config, option
from ...core.schedule import Edit, Moment, Pools, State
from ..registry import method
from .pruned import far_from_orthonormal, gated, kept, widest, wrong_ranks

_START = Normal(0.02)


@config
class AdaLoRA:
    rank: int = option(12, "directions of every site's update at the start", ge=1)
    target: int = option(8, "directions a site has in the mean at the end", ge=1)
    alpha: float | None = option(None, "numerator of the scale alpha / rank; none: 2 * rank", gt=0)
    dropout: float = option(0.0, "dropout on the input of A, in training", ge=0, le=0.95)
    begin: float = option(0.1, "share of the steps before the first direction goes", ge=0, le=1)
    end: float = option(0.3, "share of the steps, the last ones, with the final directions", ge=0, le=1)
    every: int = option(1, "steps between two choices", ge=1)
    beta1: float = option(0.85, "how slowly the mean importance follows", ge=0, le=0.999)
    beta2: float = option(0.85, "how slowly its uncertainty follows", ge=0, le=0.999)
    orthogonal: float = option(0.5, "weight of the penalty that keeps directions orthonormal", ge=0)
    ranks: tuple[tuple[str, int], ...] = option(
        (), "(pattern, rank) pairs: what a trained tenant was left with", globs=True
    )

    def check(self) -> str | None:
        if self.target > self.rank:
            return f"target={self.target} is more than rank={self.rank}"
        if self.begin + self.end > 1:
            return f"begin={self.begin} and end={self.end} are more than all steps"
        return wrong_ranks(self.ranks)


@dataclass(frozen=True)
class Budget:
    """The budget falls from all directions to the target along a cube; those with the least score have d = 0.

    Score of direction i: I(d_i) + mean I(B_*i) + mean I(A_i*), I the smoothed |w g| times its smoothed deviation.
    A direction that lost keeps its gradient, and can come back until the last choice.
    """

    config: AdaLoRA
    sites: tuple[str, ...]

    def begin(self, plan: Plan, pools: Pools, steps: int) -> tuple[State, Edit]:
        return {
            f"{k}/{n}": torch.zeros_like(p) for n, p in self._mine(pools).items() for k in ("mean", "spread")
        }, Edit()

    def _mine(self, pools: Pools) -> dict[str, Tensor]:
        return {f"{s}.{k}": pools[f"{s}.{k}"] for s in self.sites for k in "ABd"}

    def last(self, steps: int) -> int:
        return max(1, steps - round(self.config.end * steps))

    def settled(self, step: int, steps: int) -> bool:
        return step >= self.last(steps)

    def budget(self, step: int, steps: int) -> int:
        """Directions of all sites together."""
        c, n = self.config, len(self.sites)
        first, last = round(c.begin * steps), self.last(steps)
        left = 1.0 if step < first else 0.0 if step >= last else 1 - (step - first) / (last - first)
        return int((c.rank - c.target) * n * left**3 + c.target * n)

    def after(self, at: Moment, state: State) -> tuple[State, Edit]:
        last = self.last(at.steps)
        if at.step > last:
            return state, Edit()
        new = dict(state)
        for n, p in self._mine(at.pools).items():
            if n in at.grads:
                found, c = (p * at.grads[n]).abs(), self.config
                new[f"mean/{n}"] = c.beta1 * state[f"mean/{n}"] + (1 - c.beta1) * found
                off = (found - new[f"mean/{n}"]).abs()
                new[f"spread/{n}"] = c.beta2 * state[f"spread/{n}"] + (1 - c.beta2) * off
        keep = self.budget(at.step, at.steps)
        if at.step < last and (keep == self.config.rank * len(self.sites) or at.step % self.config.every):
            return new, Edit()
        masks = self.chosen(new, keep)
        gates = {f"{s}.d": at.pools[f"{s}.d"] * m for s, m in masks.items()}
        if at.step < last:
            return new, Edit(values=gates)
        whole = {f"{s}.d": m for s, m in masks.items()}
        whole |= {f"{s}.A": m[:, None] for s, m in masks.items()} | {f"{s}.B": m for s, m in masks.items()}
        return {}, Edit(masks=whole)

    def chosen(self, state: State, keep: int) -> dict[str, Tensor]:
        """{site: 1 for the directions that stay, (r,)}; of equal scores the later ones go."""
        scores = {}
        for s in self.sites:
            d, A, B = (state[f"mean/{s}.{k}"] * state[f"spread/{s}.{k}"] for k in "dAB")
            scores[s] = d + A.mean(1) + B.mean(0)
        flat = torch.cat([*scores.values()])
        mask = torch.zeros_like(flat)
        mask[flat.argsort(descending=True, stable=True)[:keep]] = 1
        return dict(zip(scores, mask.split([len(v) for v in scores.values()])))


def _penalty(config: AdaLoRA, plan: Plan, pools: Mapping[str, Tensor]) -> Tensor:
    return config.orthogonal * far_from_orthonormal(plan, pools)


def _schedule(config: AdaLoRA, plan: Plan) -> Budget:
    return Budget(config, tuple(n.removesuffix(".d") for n in plan.pools if n.endswith(".d")))


@method(
    "adalora",
    AdaLoRA,
    paper="AdaLoRA: Adaptive Budget Allocation for Parameter-Efficient Fine-Tuning, arXiv 2303.10512",
    formula="sum over sites of r (d_in + d_out + 1) while it trains; of the kept directions alone in the file",
    lr=2e-3,
    size=("target", "rank"),
    compact=kept,
    ends=lambda config, sites: widest(config, sites, config.target, config.rank),
    schedule=_schedule,
    penalty=_penalty,
)
def plan(sites: Sequence[Site], config: AdaLoRA) -> Plan:
    """h = W0 x + (alpha / r) B diag(d) A x, d zero at the start, A and B normal with deviation 0.02.

    Linear in: A, B and d, each alone. Source: arXiv 2303.10512, eqs. (3), (7) to (12). Differs: when directions go is
    said in shares of the steps; the penalty is the norm, as in the official code, where eq. (4) has its square; the
    file holds the kept directions alone. `adapt` and `Scheduled` drop directions; other loops train all of them.
    """
    alpha = 2.0 * config.rank if config.alpha is None else config.alpha
    return gated(sites, config, alpha / config.rank, {s.name: _START for s in sites}, _START, ZEROS)
