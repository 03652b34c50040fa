"""APT, its growing half: ranks are added to the half of the updates that matter most, until there are four times as
many numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...core import CommonweightError, Plan, Site, config, option
from ...core.schedule import Edit, Moment, Pools, State, carried
from ..registry import method
from .grown import first, limits, of_lora, ranks_of, resized, there, uniform
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
    resizes: ClassVar[bool] = True

    def begin(self, plan: Plan, pools: Pools, steps: int) -> tuple[State, Edit]:
        if self.config.ranks:
            return {}, Edit()
        return {s: torch.zeros(r) for s, r in zip(self.sites, ranks_of(self.sites, pools).tolist())}, Edit()

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
        mean = {}
        for s in self.sites:
            found = (at.pools[f"{s}.A"] * at.grads[f"{s}.A"]).sum(1).abs().cpu()
            mean[s] = beta * state[s].cpu() + (1 - beta) * found
        if at.step not in when:
            return mean, Edit()
        now = ranks_of(self.sites, at.pools)
        done = len([w for w in when if w <= at.step])
        widths = torch.tensor([at.pools[f"{s}.A"].shape[1] + at.pools[f"{s}.B"].shape[0] for s in self.sites])
        start = int(widths.sum()) * self.config.rank
        target = start * (1 + (self.config.times - 1) * done / self.config.rounds)
        scores = torch.stack([m.mean() for m in mean.values()])
        most = limits(self.sites, at.pools).clamp(max=self.config.room)
        ranks = self.grown(now, scores, widths, target, most)
        places = {s: first(n, r) for s, n, r in zip(self.sites, now.tolist(), ranks.tolist())}
        edit = resized(self.config, self.sites, at.pools, places, {"A": uniform}, self.seed, str(at.step))
        return {s: carried(m, (places[s],)) for s, m in mean.items()}, edit

    def grown(self, ranks: Tensor, scores: Tensor, widths: Tensor, target: float, most: Tensor) -> Tensor:
        """The better half of the sites below `most`: r becomes int(r rate), rate = (target - now) / theirs + 1."""
        order = [i for i in scores.argsort(descending=True, stable=True).tolist() if ranks[i] < most[i]]
        half = order[: (len(order) + 1) // 2]
        theirs = float((ranks * widths)[half].sum())
        more = target - float((ranks * widths).sum())
        out = ranks.clone()
        if half and more > 0:
            out[half] = torch.minimum((ranks[half] * (more / theirs + 1)).long(), most[half])
        return out


@method(
    "apt",
    APT,
    paper="APT: Adaptive Pruning and Tuning Pretrained Language Models for Efficient Training and Inference, arXiv "
    "2401.12200",
    formula="sum over sites of r (d_in + d_out), r the rank that it has; at the end about times as much as at first",
    lr=1e-3,
    size=("rank",),
    compact=lambda config, pools: there(config, pools, round(config.times * config.rank)),
    schedule=lambda config, plan: Growing(
        config, tuple(n.removesuffix(".A") for n in plan.pools if n.endswith(".A")), plan.seed
    ),
)
def plan(sites: Sequence[Site], config: APT) -> Plan:
    """h = W0 x + (alpha / r0) B A x, r0 the rank at the start; A uniform, B zero at the start and at what is added.

    Shapes: A (r, d_in), B (d_out, r), r the rank that a site has, `most` of them at the most. Linear in: A and B, each
    alone. The scale does not change with the rank, so that growing changes no answer. Source: arXiv 2401.12200, section
    4.3; github.com/ROIM1998/APT @56eaf8b ("tophalf_limited"). Not built: the pruning of the base and the
    distillation that goes with it. A tenant can mask heads and neurons (`bind.Thinned`) and numbers (`bind.Masked`),
    but a block's salience there is the sum of |h| over a batch times that of |dL/dh|, and a schedule is shown gradients
    of pools alone, which are sums of h dL/dh. Differs: when ranks are added is said in shares of the
    run. `adapt` and `Scheduled` add ranks, by a new plan each time; other loops train those of the start.
    """
    alpha = 2.0 * config.rank if config.alpha is None else config.alpha
    found = of_lora(sites, config, config.rank, alpha / config.rank)
    if not found.uses:
        raise CommonweightError("apt: ranks leaves no site with a rank above 0")
    return found
