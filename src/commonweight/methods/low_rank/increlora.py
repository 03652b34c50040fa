"""IncreLoRA: every update begins with one direction, and those of the sites that matter grow."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ...address import WHOLE, Multiplied
from ...bind import LowRank
from ...core import ZEROS, Constant, Normal, Plan, Pool, Read, Site, Use, config, option
from ...core.schedule import Edit, Moment, Pools, State
from ..registry import method
from .grown import over, wanted, wrong_growth
from .lora import pick
from .pruned import far_from_orthonormal, kept

_START = Normal(0.02)
_RESERVE = 1e-5  # e of a direction that is trained before it counts


@config
class IncreLoRA:
    target: int = option(8, "directions that a site has in the mean at the end", ge=1)
    start: int = option(1, "directions of every site at the start", ge=1)
    most: int | None = option(None, "directions that a site can have; none: 2 * target", ge=1)
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

    @property
    def room(self) -> int:
        return 2 * self.target if self.most is None else self.most

    def check(self) -> str | None:
        return wrong_growth(self)


@dataclass(frozen=True)
class Growth:
    """Score of a site: smoothed importance times its smoothed deviation. The best sites count what they hold in
    reserve, and get new reserves; a reserve trains A and B, with its e held at 1e-5."""

    config: IncreLoRA
    sites: tuple[str, ...]

    def begin(self, plan: Plan, pools: Pools, steps: int) -> tuple[State, Edit]:
        if self.config.ranks:  # it has grown
            return {}, Edit()
        n = len(self.sites)
        ranks, zeros = torch.full((n,), self.config.start), torch.zeros(n)
        return {"ranks": ranks, "mean": zeros, "spread": zeros.clone()}, self._held(pools, ranks, True)

    def last(self, steps: int) -> int:
        return max(1, steps - round(self.config.end * steps))

    def settled(self, step: int, steps: int) -> bool:
        return step >= self.last(steps)

    def _held(self, pools: Pools, ranks: Tensor, reserve: bool) -> Edit:
        """e of the directions that count as it is, of the reserve 1e-5, of others zero."""
        values, moments = {}, {}
        for s, r in zip(self.sites, ranks.tolist()):
            e = pools[f"{s}.d"]
            at = torch.arange(len(e), device=e.device)
            rest = torch.where(at < r + self.config.add, _RESERVE, 0.0) if reserve else torch.zeros_like(e)
            counts = at < r
            values[f"{s}.d"] = torch.where(counts, e, rest.to(e))
            values[f"{s}.gain"] = torch.full_like(pools[f"{s}.gain"], over(r))
            moments[f"{s}.d"] = counts.to(e)
        return Edit(values=values, moments=moments)

    def after(self, at: Moment, state: State) -> tuple[State, Edit]:
        c, last, n = self.config, self.last(at.steps), len(self.sites)
        if c.ranks:
            return state, Edit()
        if at.step > last:
            return state, self._held(at.pools, state["ranks"], False)
        found = torch.stack([self._importance(at, s) for s in self.sites]).cpu()
        mean = c.beta1 * state["mean"] + (1 - c.beta1) * found
        spread = c.beta2 * state["spread"] + (1 - c.beta2) * (found - mean).abs()
        ranks, total = state["ranks"].clone(), c.target * n
        goal = wanted(at.step, round(c.begin * at.steps), last, c.start * n, total)
        order = (mean * spread).argsort(descending=True, stable=True).tolist()
        while int(ranks.sum()) < goal:
            for i in [i for i in order if ranks[i] < c.room][: max(1, round(c.top * n))]:
                ranks[i] += min(c.add, c.room - int(ranks[i]), total - int(ranks.sum()))
        new = {"ranks": ranks, "mean": mean, "spread": spread}
        return new, self._held(at.pools, ranks, at.step < last)

    def _importance(self, at: Moment, site: str) -> Tensor:
        """sum over directions of |<s e_j b_j a_j^T, dL/ddW>| / sqrt(numbers of dW), which is |e_j dL/de_j|."""
        e, A, B = (at.pools[f"{site}.{k}"] for k in "dAB")
        return (e * at.grads[f"{site}.d"]).abs().sum() / math.sqrt(A.shape[1] * B.shape[0])


def _schedule(config: IncreLoRA, plan: Plan) -> Growth:
    return Growth(config, tuple(n.removesuffix(".d") for n in plan.pools if n.endswith(".d")))


def _compact(config: IncreLoRA, pools: Mapping[str, Tensor]) -> tuple[Any, dict[str, Tensor]]:
    if not pools:
        return replace(config, ranks=(*config.ranks, ("*", config.target))), {}
    small, out = kept(config, pools, config.target)
    return small, out | {n: p for n, p in pools.items() if n.endswith(".gain") and n.replace(".gain", ".d") in out}


@method(
    "increlora",
    IncreLoRA,
    paper="IncreLoRA: Incremental Parameter Allocation Method for Parameter-Efficient Fine-tuning, arXiv 2308.12043",
    formula="sum over sites of most (d_in + d_out + 1) while it trains; of the directions that count alone in the file",
    lr=4e-3,
    size=("target",),
    compact=_compact,
    schedule=_schedule,
    penalty=lambda config, plan, pools: config.orthogonal * far_from_orthonormal(plan, pools, "d"),
)
def plan(sites: Sequence[Site], config: IncreLoRA) -> Plan:
    """h = W0 x + alpha g B diag(e) A x, g = 1 / (r + 1e-5) by the r directions that the site has; e zero, A and B
    normal with deviation 0.02 at the start.

    Shapes: A (m, d_in), B (d_out, m), e (m,), m the most that a site can have. Linear in: A, B and e, each alone.
    Source: arXiv 2308.12043; github.com/FeiyuZhang98/IncreLoRA @51a2d73. As there, a site that grows divides what it
    has learned by its new r. Differs: a site's importance sums |<direction, gradient>| over its directions, where
    the code sums |w g| over the entries of dW, whose gradient a low-rank update does not make; growth is spread over
    shares of the run and ends at the target exactly; new directions train at the rate of the old ones. `adapt`
    and `Scheduled` let it grow; other loops train all m directions at the scale of the first ones.
    """
    pools, uses = {}, []
    for s in sites:
        r = int(pick(config.ranks, s.name, config.room))
        if not r:
            continue
        first = config.start if not config.ranks else r
        pools[f"{s.name}.A"], pools[f"{s.name}.B"] = Pool((r, s.inp), _START), Pool((s.out, r), _START)
        pools[f"{s.name}.d"] = Pool((r,), ZEROS)
        pools[f"{s.name}.gain"] = Pool((1,), Constant(over(first)), train=False)
        reads = {k: Read(WHOLE, (f"{s.name}.{k}",)) for k in "AB"}
        reads["d"] = Read(Multiplied(), (f"{s.name}.d", f"{s.name}.gain"))
        uses.append(Use(s.name, LowRank(config.alpha, config.dropout), reads))
    return Plan(pools, tuple(uses))
