"""ALoRA: ranks that the loss does not miss are taken away, and given to sites that lost none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...core import CommonweightError, Plan, Site, config, option
from ...core.schedule import Edit, Moment, Pools, State
from ..registry import method
from .grown import ROOM, limits, of_lora, resized, there, uniform
from .pruned import widest, wrong_ranks


@config
class ALoRA:
    GONE = ROOM
    rank: int = option(8, "rank of every site at the start, and in the mean at the end", ge=1)
    alpha: float | None = option(None, "numerator of the scale alpha / rank; none: 2 * rank", gt=0)
    dropout: float = option(0.0, "dropout on the input of A, in training", ge=0, le=0.95)
    rounds: int = option(8, "how often ranks are moved", ge=0)
    begin: float = option(0.3, "share of the steps before the first round", ge=0, le=1)
    between: float = option(0.075, "share of the steps from one round to the next", gt=0, le=1)
    move: float = option(1.0, "ranks that go in a round, for each site", gt=0)
    ranks: tuple[tuple[str, int], ...] = option(
        (), "(pattern, rank) pairs: what a trained tenant was left with", globs=True
    )

    def check(self) -> str | None:
        return wrong_ranks(self.ranks)


@dataclass(frozen=True)
class Moving:
    """Score of a rank: loss without it - loss with it alone. Those with the least go; sites that lost none get as many
    new ones, A drawn and B zero, so that a new rank changes no answer."""

    config: ALoRA
    sites: tuple[str, ...]
    seed: int
    resizes: ClassVar[bool] = True

    def begin(self, plan: Plan, pools: Pools, steps: int) -> tuple[State, Edit]:
        return ({} if self.config.ranks else {"rounds": torch.zeros(1)}), Edit()

    def step_of(self, n: int, steps: int) -> int:
        """The step after which round n = 0, 1, ... is held."""
        return max(1, round((self.config.begin + n * self.config.between) * steps))

    def settled(self, step: int, steps: int) -> bool:
        rounds = [n for n in range(self.config.rounds) if self.step_of(n, steps) < steps]
        return not rounds or bool(self.config.ranks) or step >= self.step_of(rounds[-1], steps)

    def after(self, at: Moment, state: State) -> tuple[State, Edit]:
        n = int(state["rounds"]) if state else self.config.rounds
        if n >= self.config.rounds or at.step >= at.steps or at.step < self.step_of(n, at.steps):
            return state, Edit()
        most = dict(zip(self.sites, limits(self.sites, at.pools).tolist()))
        moved = self.moved(self.scores(at), most)
        edit = resized(self.config, self.sites, at.pools, moved, {"A": uniform}, self.seed, str(n))
        return {"rounds": state["rounds"] + 1}, edit

    def scores(self, at: Moment) -> dict[str, Tensor]:
        """Of each site that has ranks, (r,)."""
        B = {s: at.pools[n] for s in self.sites if (n := f"{s}.B") in at.pools}
        out, nothing = {}, {f"{s}.B": torch.zeros_like(b) for s, b in B.items()}
        for s, b in B.items():
            found = []
            for j in range(b.shape[1]):
                one = torch.zeros_like(b)
                one[:, j] = b[:, j]
                found.append(at.loss({f"{s}.B": b - one}) - at.loss({**nothing, f"{s}.B": one}))
            out[s] = torch.tensor(found)
        return out

    def moved(self, scores: Mapping[str, Tensor], limits: Mapping[str, int]) -> dict[str, Tensor]:
        """The places of the ranks that a site has from now on, -1 for new ones. Of equal scores the earlier ranks go;
        as many as sites that lose none can be given."""
        flat, owner = torch.cat([*scores.values()]), [(s, j) for s, v in scores.items() for j in range(len(v))]
        order = [owner[i] for i in flat.argsort(stable=True).tolist()]
        most = min(len(order), max(1, round(self.config.move * len(self.sites))))
        free: dict[str, int] = {}
        for many in range(most, -1, -1):
            lost = {s for s, _ in order[:many]}
            free = {s: limits[s] - len(v) for s, v in scores.items() if s not in lost}
            if sum(free.values()) >= many:
                break
        left = {s: sorted(j for t, j in order[many:] if t == s) for s in scores}
        whole = sorted(free, key=lambda s: -scores[s].mean().item())
        for s in [s for k in range(many) for s in whole if k < free[s]][:many]:
            left[s].append(-1)
        return {s: torch.tensor(at, dtype=torch.long) for s, at in left.items()}


@method(
    "alora",
    ALoRA,
    paper="ALoRA: Allocating Low-Rank Adaptation for Fine-tuning Large Language Models, arXiv 2403.16187",
    formula="sum over sites of r (d_in + d_out), r the rank that it has; of all together as many as at the start",
    lr=1e-3,
    size=("rank",),
    compact=there,
    ends=lambda config, sites: widest(config, sites, config.rank),
    schedule=lambda config, plan: Moving(
        config, tuple(n.removesuffix(".A") for n in plan.pools if n.endswith(".A")), plan.seed
    ),
)
def plan(sites: Sequence[Site], config: ALoRA) -> Plan:
    """h = W0 x + (alpha / r) B A x, r the rank at the start; A uniform, B zero at the start.

    Shapes: A (m, d_in), B (d_out, m), m the ranks whose gate is 1: one of gate 0 is not there. Linear in: A and B, each
    alone. Cost: two forward passes a rank in each round, 2 r for a site; rounds=2 is a quarter of the paper's. Source:
    arXiv 2403.16187, sections 3.2 to 3.4; no code was found.
    Differs: the loss is that of the step's own rows, where the paper keeps 32 dev rows for it; rounds are shares of the
    run; a round moves no more ranks than sites that lose none can be given, up to min(d_in, d_out) each, where the
    paper lets them go: of small ranks, every site loses some in a round, and soon there are none. New columns of B are
    zero, which the paper does not say. `adapt` and `Scheduled` move ranks, by a new plan each time; other loops train
    those of the start.
    """
    alpha = 2.0 * config.rank if config.alpha is None else config.alpha
    found = of_lora(sites, config, config.rank, alpha / config.rank)
    if not found.uses:
        raise CommonweightError("alora: ranks leaves no site with a rank above 0")
    return found
