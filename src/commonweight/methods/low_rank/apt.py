"""APT, its growing half: ranks are added to the half of the updates that matter most, until there are four times as
many numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...core import CommonweightError, Plan, Site, config, option
from ...core.schedule import Edit, Moment, Pools, State
from ..registry import method
from .grown import grow, left, masks, roomy
from .pruned import wrong_ranks


@config
class APT:
    rank: int = option(8, "rank of every site at the start", ge=1)
    times: float = option(4.0, "how many times as many numbers are trained at the end", ge=1)
    most: int | None = option(None, "rank that a site can have; none: 8 * rank", ge=1)
    alpha: float | None = option(None, "numerator of the scale alpha / rank; none: 2 * rank", gt=0)
    dropout: float = option(0.0, "dropout on the input of A, in training", ge=0, le=0.95)
    rounds: int = option(10, "how often ranks are added", ge=0)
    begin: float = option(0.1, "share of the steps before ranks are added", ge=0, le=1)
    end: float = option(0.5, "share of the steps, the last ones, with the final ranks", ge=0, le=1)
    beta: float = option(0.85, "how slowly the importance of a rank follows", ge=0, le=0.999)
    ranks: tuple[tuple[str, int], ...] = option(
        (), "(pattern, rank) pairs: what a trained tenant was left with", globs=True
    )

    @property
    def room(self) -> int:
        return 8 * self.rank if self.most is None else self.most

    def check(self) -> str | None:
        if self.room < self.rank:
            return f"most={self.most} is less than rank={self.rank}"
        if self.begin + self.end > 1:
            return f"begin={self.begin} and end={self.end} are more than all steps"
        return wrong_ranks(self.ranks)


@dataclass(frozen=True)
class Growing:
    """Score of a site: the mean over its ranks of the smoothed |sum_j A_ij dL/dA_ij|."""

    config: APT
    sites: tuple[str, ...]
    seed: int

    def begin(self, plan: Plan, pools: Pools, steps: int) -> tuple[State, Edit]:
        if self.config.ranks:
            return {}, Edit()
        gates = self._gates(torch.full((len(self.sites),), self.config.rank))
        return {"ranks": gates.sum(1), "mean": torch.zeros_like(gates)}, Edit(masks=masks(self.sites, pools, gates))

    def _gates(self, ranks: Tensor) -> Tensor:
        return (torch.arange(self.config.room) < ranks[:, None]).float()

    def steps_of(self, steps: int) -> list[int]:
        """The steps after which ranks are added: round i of n at i / n of the way."""
        c = self.config
        first, last = c.begin * steps, (1 - c.end) * steps
        return [max(1, round(first + (last - first) * i / c.rounds)) for i in range(1, c.rounds + 1)]

    def settled(self, step: int, steps: int) -> bool:
        return bool(self.config.ranks) or not self.config.rounds or step >= self.steps_of(steps)[-1]

    def after(self, at: Moment, state: State) -> tuple[State, Edit]:
        if not state or self.settled(at.step - 1, at.steps):
            return state, Edit()
        beta, when = self.config.beta, self.steps_of(at.steps)
        found = torch.stack([(at.pools[f"{s}.A"] * at.grads[f"{s}.A"]).sum(1).abs().cpu() for s in self.sites])
        mean = beta * state["mean"] + (1 - beta) * found
        if at.step not in when:
            return {**state, "mean": mean}, Edit()
        now = state["ranks"].long()
        done = len([w for w in when if w <= at.step])
        widths = torch.tensor([at.pools[f"{s}.A"].shape[1] + at.pools[f"{s}.B"].shape[0] for s in self.sites])
        start = int(widths.sum()) * self.config.rank
        target = start * (1 + (self.config.times - 1) * done / self.config.rounds)
        scores = (mean * self._gates(now)).sum(1) / now
        ranks = self.grown(now, scores, widths, target)
        edit = grow(
            self.sites, at.pools, self._gates(ranks), self._gates(ranks) - self._gates(now), self.seed, str(at.step)
        )
        return {"ranks": ranks.float(), "mean": mean}, edit

    def grown(self, ranks: Tensor, scores: Tensor, widths: Tensor, target: float) -> Tensor:
        """The better half of the sites that have room: r becomes int(r rate), rate = (target - now) / theirs + 1."""
        order = [i for i in scores.argsort(descending=True, stable=True).tolist() if ranks[i] < self.config.room]
        half = order[: (len(order) + 1) // 2]
        theirs = float((ranks * widths)[half].sum())
        more = target - float((ranks * widths).sum())
        out = ranks.clone()
        if half and more > 0:
            out[half] = (ranks[half] * (more / theirs + 1)).long().clamp(max=self.config.room)
        return out


@method(
    "apt",
    APT,
    paper="APT: Adaptive Pruning and Tuning Pretrained Language Models for Efficient Training and Inference, arXiv "
    "2401.12200",
    formula="sum over sites of most (d_in + d_out) while it trains; of the ranks that are there in the file, about "
    "times r (d_in + d_out)",
    lr=1e-3,
    size=("rank",),
    compact=lambda config, pools: left(config, pools, round(config.times * config.rank)),
    schedule=lambda config, plan: Growing(
        config, tuple(n.removesuffix(".A") for n in plan.pools if n.endswith(".A")), plan.seed
    ),
)
def plan(sites: Sequence[Site], config: APT) -> Plan:
    """h = W0 x + (alpha / r0) B A x, r0 the rank at the start; A uniform, B zero at the start and at what is added.

    Shapes: A (m, d_in), B (d_out, m), m the most that a site can have. Linear in: A and B, each alone. The scale does
    not change with the rank, so that growing changes no answer. Source: arXiv 2401.12200, section 4.3;
    github.com/ROIM1998/APT @56eaf8b ("tophalf_limited"). Not built: the pruning of the base, whose shapes are not a
    tenant's to change, and the distillation that goes with it. Differs: when ranks are added is said in shares of the
    run. `adapt` and `Scheduled` add ranks; other loops train all m of a site.
    """
    alpha = 2.0 * config.rank if config.alpha is None else config.alpha
    found = roomy(sites, config, config.room, alpha / config.rank)
    if not found.uses:
        raise CommonweightError("apt: ranks leaves no site with a rank above 0")
    return found
