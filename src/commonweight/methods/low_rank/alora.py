"""ALoRA: ranks that the loss does not miss are taken away, and given to sites that lost none."""

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
class ALoRA:
    rank: int = option(8, "rank of every site at the start, and in the mean at the end", ge=1)
    most: int | None = option(None, "rank that a site can have; none: 2 * rank", ge=1)
    alpha: float | None = option(None, "numerator of the scale alpha / rank; none: 2 * rank", gt=0)
    dropout: float = option(0.0, "dropout on the input of A, in training", ge=0, le=0.95)
    rounds: int = option(8, "how often ranks are moved", ge=0)
    begin: float = option(0.3, "share of the steps before the first round", ge=0, le=1)
    between: float = option(0.075, "share of the steps from one round to the next", gt=0, le=1)
    move: float = option(1.0, "ranks that go in a round, for each site", gt=0)
    ranks: tuple[tuple[str, int], ...] = option(
        (), "(pattern, rank) pairs: what a trained tenant was left with", globs=True
    )

    @property
    def room(self) -> int:
        return 2 * self.rank if self.most is None else self.most

    def check(self) -> str | None:
        if self.room < self.rank:
            return f"most={self.most} is less than rank={self.rank}"
        return wrong_ranks(self.ranks)


@dataclass(frozen=True)
class Moving:
    """Score of a rank: loss without it - loss with it alone. Those with the least go; sites that lost none get as many
    new ones, A drawn and B zero, so that a new rank changes no answer."""

    config: ALoRA
    sites: tuple[str, ...]
    seed: int

    def begin(self, plan: Plan, pools: Pools, steps: int) -> tuple[State, Edit]:
        if self.config.ranks:
            return {}, Edit()
        gates = torch.zeros(len(self.sites), self.config.room)
        gates[:, : self.config.rank] = 1
        return {"gates": gates, "rounds": torch.zeros(1)}, Edit(masks=masks(self.sites, pools, gates))

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
        gates, given = self.moved(self.scores(at, state["gates"]), state["gates"])
        edit = grow(self.sites, at.pools, gates, given, self.seed, str(n))
        return {"gates": gates, "rounds": state["rounds"] + 1}, edit

    def scores(self, at: Moment, gates: Tensor) -> Tensor:
        """(sites, room); infinite where there is no rank."""
        out = torch.full_like(gates, torch.inf)
        nothing = {f"{s}.B": torch.zeros_like(at.pools[f"{s}.B"]) for s in self.sites}
        for i, s in enumerate(self.sites):
            B = at.pools[f"{s}.B"]
            for j in gates[i].nonzero()[:, 0].tolist():
                one = torch.zeros_like(B)
                one[:, j] = B[:, j]
                out[i, j] = at.loss({f"{s}.B": B - one}) - at.loss({**nothing, f"{s}.B": one})
        return out

    def moved(self, scores: Tensor, gates: Tensor) -> tuple[Tensor, Tensor]:
        """(gates from now on, those of them that are new). Of equal scores the earlier ranks go; as many as find room
        at sites that lose none."""
        order = scores.view(-1).argsort(stable=True)
        most = min(int(gates.sum()), max(1, round(self.config.move * len(self.sites))))
        for many in range(most, -1, -1):
            left = gates.clone()
            left.view(-1)[order[:many]] = 0
            whole = [i for i in range(len(gates)) if torch.equal(left[i], gates[i]) and gates[i].any()]
            free = {i: (gates[i] == 0).nonzero()[:, 0].tolist() for i in whole}
            if sum(map(len, free.values())) >= many:
                break
        whole.sort(key=lambda i: -scores[i][gates[i].bool()].mean().item())
        given = torch.zeros_like(gates)
        places = [(i, free[i][k]) for k in range(gates.shape[1]) for i in whole if k < len(free[i])]
        for i, j in places[:many]:
            given[i, j] = 1
        return left + given, given


@method(
    "alora",
    ALoRA,
    paper="ALoRA: Allocating Low-Rank Adaptation for Fine-tuning Large Language Models, arXiv 2403.16187",
    formula="sum over sites of most (d_in + d_out) while it trains; of the ranks that are left alone in the file",
    lr=1e-3,
    size=("rank",),
    compact=lambda config, pools: left(config, pools, config.rank),
    schedule=lambda config, plan: Moving(
        config, tuple(n.removesuffix(".A") for n in plan.pools if n.endswith(".A")), plan.seed
    ),
)
def plan(sites: Sequence[Site], config: ALoRA) -> Plan:
    """h = W0 x + (alpha / r) B diag(g) A x, gates g of 0 and 1; A uniform, B zero at the start.

    Shapes: A (m, d_in), B (d_out, m), m the most that a site can have; a gate is a row of A and a column of B that are
    zero and stay it. Linear in: A and B, each alone. Cost: two forward passes a rank in each round, 2 r for a site;
    rounds=2 is a quarter of the paper's. Source: arXiv 2403.16187, sections 3.2 to 3.4; no code was found.
    Differs: the loss is that of the step's own rows, where the paper keeps 32 dev rows for it; rounds are shares of the
    run; a site has room for most ranks, and a round moves as many as find room, where the paper lets them go: of small
    ranks, every site loses some in a round, and soon there are none. New columns of B are zero, which the paper does
    not say. `adapt` and `Scheduled` move ranks; other loops train all m of a site.
    """
    alpha = 2.0 * config.rank if config.alpha is None else config.alpha
    found = roomy(sites, config, config.room, alpha / config.rank)
    if not found.uses:
        raise CommonweightError("alora: ranks leaves no site with a rank above 0")
    return found
