"""IncreLoRA: every update begins with one direction, and those of the sites that matter grow."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...address import WHOLE, Multiplied
from ...bind import LowRank
from ...core import ZEROS, Constant, Normal, Plan, Pool, Read, Site, Use, config, option
from ...core.schedule import Edit, Moment, Pools, State, carried
from ..registry import method
from .grown import ROOM, first, limits, over, resized, size, wanted, wrong_growth
from .pruned import far_from_orthonormal, kept, widest

_START = Normal(0.02)
_RESERVE = 1e-5  # e of a direction that is trained before it counts


@config
class IncreLoRA:
    GONE = ROOM
    target: int = option(8, "directions that a site has in the mean at the end", ge=1)
    start: int = option(1, "directions of every site at the start", ge=1)
    alpha: float = option(32.0, "numerator of the scale alpha / r, r the directions that a site has", gt=0)
    dropout: float = option(0.0, "dropout on the input of A, in training", ge=0, le=0.95)
    add: int = option(1, "directions that a chosen site gets at a time, and holds in reserve", ge=1)
    top: float = option(0.25, "share of the sites that grow at a time", gt=0, le=1)
    begin: float = option(0.1, "share of the steps before the first growth", ge=0, le=1)
    end: float = option(0.5, "share of the steps, the last ones, with the final directions", ge=0, le=1)
    beta1: float = option(0.85, "how slowly the mean importance follows", ge=0, le=0.999)
    beta2: float = option(0.85, "how slowly its uncertainty follows", ge=0, le=0.999)
    orthogonal: float = option(0.1, "weight of the penalty that keeps directions orthonormal", ge=0)
    ranks: tuple[tuple[str, int], ...] = option(
        (), "(pattern, rank) pairs: what a trained tenant was left with", globs=True
    )

    def check(self) -> str | None:
        return wrong_growth(self)


@dataclass(frozen=True)
class Growth:
    """Score of a site: smoothed importance times its smoothed deviation. The best sites count what they hold in
    reserve, and get new reserves; a reserve trains A and B, with its e held at 1e-5. At the end reserves go."""

    config: IncreLoRA
    sites: tuple[str, ...]
    seed: int
    resizes: ClassVar[bool] = True

    def begin(self, plan: Plan, pools: Pools, steps: int) -> tuple[State, Edit]:
        if self.config.ranks:  # it has grown
            return {}, Edit()
        ranks, zeros = limits(self.sites, pools).clamp(max=self.config.start), torch.zeros(len(self.sites))
        state = {"ranks": ranks, "mean": zeros, "spread": zeros.clone()}
        return state, self._counting(pools, dict(zip(self.sites, ranks.tolist())), self.config.add, 0)

    def last(self, steps: int) -> int:
        return max(1, steps - round(self.config.end * steps))

    def settled(self, step: int, steps: int) -> bool:
        return step >= self.last(steps)

    def _counting(self, pools: Pools, ranks: Mapping[str, int], add: int, step: int) -> Edit:
        """These sites have so many directions that count, and behind them so many in reserve."""
        at, e, held, gains = {}, {}, {}, {}
        for s, r in ranks.items():
            n, most = len(pools[f"{s}.d"]), int(limits([s], pools))
            at[s] = first(n, min(r + add, most))
            counts = torch.arange(len(at[s])) < r
            old = carried(pools[f"{s}.d"], (at[s],))
            e[f"{s}.d"] = torch.where(counts.to(old.device), old, _RESERVE)
            held[f"{s}.d"], gains[f"{s}.gain"] = ~counts, torch.full_like(pools[f"{s}.gain"], over(r))
        edit = resized(self.config, self.sites, pools, at, {"A": _START, "B": _START}, self.seed, str(step))
        return edit._replace(values={**edit.values, **e, **gains}, held=held)

    def after(self, at: Moment, state: State) -> tuple[State, Edit]:
        c, last, n = self.config, self.last(at.steps), len(self.sites)
        if c.ranks or at.step > last:
            return state, Edit()
        found = torch.stack([self._importance(at, s) for s in self.sites]).cpu()
        had = {k: v.cpu() for k, v in state.items()}
        mean = c.beta1 * had["mean"] + (1 - c.beta1) * found
        spread = c.beta2 * had["spread"] + (1 - c.beta2) * (found - mean).abs()
        ranks, most = had["ranks"].clone(), limits(self.sites, at.pools)
        total = min(c.target * n, int(most.sum()))
        goal = wanted(at.step, round(c.begin * at.steps), last, min(c.start * n, total), total)
        order = (mean * spread).argsort(descending=True, stable=True).tolist()
        while int(ranks.sum()) < goal:
            for i in [i for i in order if ranks[i] < most[i]][: max(1, round(c.top * n))]:
                ranks[i] += min(c.add, int(most[i] - ranks[i]), total - int(ranks.sum()))
        new, ends = {"ranks": ranks, "mean": mean, "spread": spread}, at.step == last
        other = {s: r for s, r, was in zip(self.sites, ranks.tolist(), had["ranks"].tolist()) if ends or r > was}
        return new, self._counting(at.pools, other, 0 if ends else c.add, at.step) if other else Edit()

    def _importance(self, at: Moment, site: str) -> Tensor:
        """sum over directions of |<s e_j b_j a_j^T, dL/ddW>| / sqrt(numbers of dW), which is |e_j dL/de_j|."""
        e, A, B = (at.pools[f"{site}.{k}"] for k in "dAB")
        return (e * at.grads[f"{site}.d"]).abs().sum() / math.sqrt(A.shape[1] * B.shape[0])


def _schedule(config: IncreLoRA, plan: Plan) -> Growth:
    return Growth(config, tuple(n.removesuffix(".d") for n in plan.pools if n.endswith(".d")), plan.seed)


def _compact(config: IncreLoRA, pools: Mapping[str, Tensor]) -> tuple[Any, dict[str, Tensor]]:
    small, out = kept(config, pools)
    return small, out | {n: p for n, p in pools.items() if n.endswith(".gain") and n.replace(".gain", ".d") in out}


@method(
    "increlora",
    IncreLoRA,
    paper="IncreLoRA: Incremental Parameter Allocation Method for Parameter-Efficient Fine-tuning, arXiv 2308.12043",
    formula="sum over sites of n (d_in + d_out + 1), n the directions that it has; while they grow, with its reserve",
    lr=4e-3,
    size=("target",),
    compact=_compact,
    ends=lambda config, sites: widest(config, sites, config.target),
    schedule=_schedule,
    penalty=lambda config, plan, pools: config.orthogonal * far_from_orthonormal(plan, pools),
)
def plan(sites: Sequence[Site], config: IncreLoRA) -> Plan:
    """h = W0 x + alpha g B diag(e) A x, g = 1 / (r + 1e-5) by the r directions that the site has; e zero, A and B
    normal with deviation 0.02 at the start.

    Shapes: A (m, d_in), B (d_out, m), e (m,), m = r and the reserve. Linear in: A, B and e, each alone.
    Source: arXiv 2308.12043; github.com/FeiyuZhang98/IncreLoRA @51a2d73. As there, a site that grows divides what it
    has learned by its new r. Differs: a site's importance sums |<direction, gradient>| over its directions, where
    the code sums |w g| over the entries of dW, whose gradient a low-rank update does not make; growth is spread over
    shares of the run and ends at the target exactly; new directions train at the rate of the old ones; no site has
    more than min(d_in, d_out). `adapt` and `Scheduled` let it grow, by a new plan each time; other loops train the
    first directions and their reserve.
    """
    pools, uses = {}, []
    for s in sites:
        r = size(config, s, config.start + config.add)
        if not r:
            continue
        counts = r if config.ranks else min(config.start, r)
        pools[f"{s.name}.A"], pools[f"{s.name}.B"] = Pool((r, s.inp), _START), Pool((s.out, r), _START)
        pools[f"{s.name}.d"] = Pool((r,), ZEROS)
        pools[f"{s.name}.gain"] = Pool((1,), Constant(over(counts)), train=False)
        reads = {k: Read(WHOLE, (f"{s.name}.{k}",)) for k in "AB"}
        reads["d"] = Read(Multiplied(), (f"{s.name}.d", f"{s.name}.gain"))
        uses.append(Use(s.name, LowRank(config.alpha, config.dropout), reads))
    return Plan(pools, tuple(uses))
