"""MoV: vectors that scale keys, values and inner activations, several at each site, of which a token takes a mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from ...address import WHOLE
from ...bind.low_rank import each
from ...bind.mixture import GATED, tell
from ...core import ONES, Base, Normal, Plan, Pool, Read, Site, Use, config, option, serial
from ..registry import method
from .losses import largest, weighed


@config
class MoV:
    experts: int = option(30, "vectors at each site", ge=1)
    balance: float = option(0.0, "weight of the load of experts in the loss, site by site", ge=0)


@serial
@dataclass(frozen=True)
class VectorsOut:
    """y' = y * sum_e p_e l_e, p = softmax(router y). Shapes: l (E, d_out), router (E, d_out). Cost: 2 T E d_out."""

    anywhere: ClassVar[str] = "output"
    precise: ClassVar[bool] = True
    unmerged: ClassVar[str] = GATED

    def output(self, x: Tensor, y: Tensor, base: Base, l: Tensor, router: Tensor) -> Tensor:
        return scaled(y, base, l, router)

    def grouped(self, x: Tensor, y: Tensor, base: Base, l: Tensor, router: Tensor) -> Tensor:
        logits = each(y.float(), router)
        tell(base, logits)
        return (y * torch.bmm(logits.softmax(-1), l)).to(y.dtype)


@serial
@dataclass(frozen=True)
class VectorsIn:
    """x' = x * sum_e p_e l_e, p = softmax(router x). Shapes: l (E, d_in), router (E, d_in). Cost: 2 T E d_in."""

    precise: ClassVar[bool] = True
    unmerged: ClassVar[str] = GATED

    def input(self, x: Tensor, base: Base, l: Tensor, router: Tensor) -> Tensor:
        return scaled(x, base, l, router)


def scaled(x: Tensor, base: Base, l: Tensor, router: Tensor) -> Tensor:
    logits = F.linear(x.float(), router)
    tell(base, logits)
    return (x * (logits.softmax(-1) @ l)).to(x.dtype)


@method(
    "mov",
    MoV,
    paper="Pushing Mixture of Experts to the Limit: Extremely Parameter Efficient MoE for Instruction Tuning, "
    "arXiv 2309.05444",
    formula="2 E sum over layers of d_key + d_value + d_ff",
    kinds=("linear", "expert"),
    named=("router",),
    roles=("key", "value", "qkv", "down"),
    lr=1e-2,
    size=("experts",),
    routing=lambda config: weighed(config.balance, 0.0, largest(1), "site"),
)
def plan(sites: Sequence[Site], config: MoV) -> Plan:
    """k' = (sum_e p_e l_e) * k, v' likewise, h' = W_down ((sum_e p_e l_e) * h): (IA)3 with E vectors a site, p the
    softmax of a router on the very states that are scaled.

    Shapes: l (E, n) of ones, router (E, n) ~ N(0, 0.02): a fresh tenant is the base, since p sums to 1. Linear in: l.
    Source: arXiv 2309.05444, section 3; github.com/for-ai/parameter-efficient-moe @e2683fe, src/mov.py and
    configs/mov.gin (E = 30). Differs: for keys and values the official router reads one head's states, and is one for
    all heads; here it reads all heads'. AdamW, and the rate of (IA)3, where the official runs take Adafactor at 3e-4.
    """
    pools, uses = {}, []
    for s in sites:
        inward = s.role == "down"
        n = s.inp if inward else s.out
        pools[f"{s.name}.l"] = Pool((config.experts, n), ONES)
        pools[f"{s.name}.router"] = Pool((config.experts, n), Normal(0.02))
        reads = {k: Read(WHOLE, (f"{s.name}.{k}",)) for k in ("l", "router")}
        uses.append(Use(s.name, VectorsIn() if inward else VectorsOut(), reads))
    return Plan(pools, tuple(uses))
