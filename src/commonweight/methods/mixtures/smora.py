"""SMoRA: every rank of a low-rank update is an expert, and a token takes some of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...bind import Mixture
from ...core import Plan, Site, config, option
from ...core.schedule import Edit, Moment, Pools, State
from ..choices import more_than
from ..registry import method
from .plans import mixture


@config
class SMoRA:
    rank: int = option(64, "ranks at each site, all experts together", ge=1)
    active: int = option(8, "ranks that a token takes", ge=1)
    partition: int = option(1, "ranks that are chosen together", ge=1)
    alpha: float = option(16.0, "scale of the update; the number of active ranks cancels", gt=0)
    dropout: float = option(0.0, "dropout on the input of A and of the router, in training", ge=0, le=0.95)
    bias: float = option(
        0.0, "how far each step moves a bias of the choice against a rank's load (official: 1e-5); 0: no bias", ge=0
    )

    def check(self) -> str | None:
        if self.rank % self.partition or self.active % self.partition:
            return f"rank {self.rank} and active {self.active} are not whole parts of {self.partition}"
        return more_than("active", self.active, "ranks", self.rank)


@dataclass(frozen=True)
class Levelling:
    """After every step: b_i <- b_i + by sign(mean(n) - n_i), n_i how many of the step's tokens took i, site by site."""

    by: float
    sites: Mapping[str, Mixture]

    def begin(self, plan: Plan, pools: Pools, steps: int) -> tuple[State, Edit]:
        return {}, Edit()

    def settled(self, step: int, steps: int) -> bool:
        return True

    def count(self, said: Mapping[str, tuple[Tensor, Tensor]], pools: Pools) -> Pools:
        return {n: taken(bind, pools[f"{n}.shift"], said.get(n)) for n, bind in self.sites.items()}

    def after(self, at: Moment, state: State) -> tuple[State, Edit]:
        less = {f"{n}.shift": (c.sum() - len(c) * c.double()).sign().float() for n, c in at.counted.items()}
        return state, Edit(values={n: at.pools[n] + self.by * s for n, s in less.items()})


def taken(bind: Mixture, shift: Tensor, said: tuple[Tensor, Tensor] | None) -> Tensor:
    """How many tokens took each expert, (E,); padding counts for nothing."""
    if said is None:
        return torch.zeros_like(shift)
    logits, real = said
    return ((bind.gates(logits, shift) != 0) * real[:, None]).sum(0)


def _schedule(config: SMoRA, plan: Plan) -> Levelling | None:
    routed = {u.site: u.bind for u in plan.uses if isinstance(u.bind, Mixture)}  # a head has no router
    return Levelling(config.bias, routed) if config.bias else None


@method(
    "smora",
    SMoRA,
    paper="Each Rank Could be an Expert: Single-Ranked Mixture of Experts LoRA for Multi-Task Learning, "
    "arXiv 2501.15103",
    formula="sum over sites of r (d_in + d_out) + r d_in / p",
    kinds=("linear", "expert"),
    named=("router",),
    schedule=_schedule,
)
def plan(sites: Sequence[Site], config: SMoRA) -> Plan:
    """h = W x + (alpha / k) B diag(g) A x; q = sigmoid(R x) + b, g_i = k q_i / (sum of the k largest) or 0.

    Shapes: A (r, d_in), B (d_out, r), R (r / p, d_in), b (r / p,): each q stands for p ranks. b is zero at the start
    and has no gradient: see `Levelling`. Linear in: A and B, each alone. Source: arXiv 2501.15103;
    github.com/StyxXuan/smora @7e7ada1, the dense branch beside its kernels; the paper's text was not read. As there, b
    is a part of the gates too, not of the choice alone. Differs: b is there where it is asked for (theirs always moves
    by 1e-5, which in a thousand steps is at most 0.01 beside a q between 0 and 1); it moves once a step, not once a
    pass; padding counts for nothing. Products are done for all ranks, and multiplied by 0 for those that a token does
    not take. Raises: CommonweightError in training for a bias in experts of the model's own, where nobody hears.
    """
    experts, k = config.rank // config.partition, config.active // config.partition
    # k of the official numerator is that of ranks; over p ranks each, sum g = k again
    scale = config.alpha / config.partition
    return mixture(
        sites, lambda n: Mixture(scale, "sigmoid", k, config.dropout, dropped=True), [experts] * len(sites),
        config.partition, shifted=config.bias > 0,
    )  # fmt: skip
