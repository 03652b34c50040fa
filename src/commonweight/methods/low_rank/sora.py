"""SoRA: a gate for each direction of a low-rank update, which a threshold closes while it trains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ...core import ZEROS, Normal, Plan, Site, config, kaiming, option
from ...core.schedule import Edit, Moment, Pools, State
from ..registry import method
from .pruned import gated, kept, wrong_ranks


@config
class SoRA:
    rank: int = option(8, "directions of every site's update at the start", ge=1)
    alpha: float | None = option(None, "numerator of the scale alpha / rank; none: 2 * rank", gt=0)
    dropout: float = option(0.0, "dropout on the input of A, in training", ge=0, le=0.95)
    threshold: float = option(3e-4, "how far every step moves a gate towards zero, and no further", ge=0)
    penalty: float = option(10.0, "weight of the mean |gate| in the loss", ge=0)
    compat: Literal["paper", "official"] = option(
        "paper", "official: a gate below twice the threshold is closed, as the published code does"
    )
    ranks: tuple[tuple[str, int], ...] = option(
        (), "(pattern, rank) pairs: what a trained tenant was left with", globs=True
    )

    def check(self) -> str | None:
        return wrong_ranks(self.ranks)


@dataclass(frozen=True)
class Proximal:
    """After every step: g <- sign(g) max(|g| - threshold, 0). A closed gate has a gradient and may open again."""

    threshold: float
    official: bool

    def begin(self, plan: Plan, pools: Pools, steps: int) -> tuple[State, Edit]:
        return {}, Edit()

    def settled(self, step: int, steps: int) -> bool:
        return True

    def after(self, at: Moment, state: State) -> tuple[State, Edit]:
        gates = {n: p for n, p in at.pools.items() if n.endswith(".d")}
        return state, Edit(values={n: proximal(g, self.threshold, self.official) for n, g in gates.items()})


def proximal(g: Tensor, by: float, official: bool) -> Tensor:
    """The soft threshold. official: the two comparisons in the order of src/sparse_optimizer.py, where the second one
    meets what the first has lowered."""
    if not official:
        return g.sign() * (g.abs() - by).clamp(min=0)
    g = torch.where(g > by, g - by, g)
    g = torch.where(g < -by, g + by, g)
    return torch.where(g.abs() < by, torch.zeros_like(g), g)


def _penalty(config: SoRA, plan: Plan, pools: Mapping[str, Tensor]) -> Tensor:
    gates = [p for n, p in pools.items() if n.endswith(".d") and n in plan.pools]
    return config.penalty * torch.cat(gates).abs().mean() if gates else torch.zeros(())


@method(
    "sora",
    SoRA,
    paper="Sparse Low-rank Adaptation of Pre-trained Language Models, arXiv 2311.11696",
    formula="sum over sites of r (d_in + d_out + 1) while it trains; of the open directions alone in the file",
    lr=8e-4,
    compact=kept,
    schedule=lambda config, plan: Proximal(config.threshold, config.compat == "official"),
    penalty=_penalty,
)
def plan(sites: Sequence[Site], config: SoRA) -> Plan:
    """h = W0 x + (alpha / r) B diag(g) A x, A uniform, B zero, g standard normal at the start.

    Linear in: A, B and g, each alone. Source: arXiv 2311.11696, eqs. (6) to (9); github.com/TsinghuaC3I/SoRA @c275ac2.
    Differs: one optimiser for all pools; layer norms are not trained; the file holds the open directions alone.
    """
    alpha = 2.0 * config.rank if config.alpha is None else config.alpha
    return gated(
        sites, config, alpha / config.rank, {s.name: kaiming(s.inp) for s in sites}, ZEROS, Normal(1.0)
    )  # fmt: skip
