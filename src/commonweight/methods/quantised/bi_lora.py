"""Bi-LoRA: a low-rank update whose factors have one bit for each number, in training and afterwards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...address import WHOLE
from ...bind import LowRank
from ...core import Base, Normal, Plan, Pool, Read, Site, Use, config, kaiming, option, serial
from ...core.onebit import onebit
from ..registry import method


@config
class BiLoRA:
    rank: int = option(32, "rank r of the update", ge=1)
    scale: float = option(10.0, "factor on the update", gt=0)
    dropout: float = option(0.0, "dropout on the input of A, in training", ge=0, le=0.95)
    stored: bool = option(False, "the factors are at their two levels already, as `Host.compact` leaves them")


@serial
@dataclass(frozen=True)
class OneBitLowRank:
    """w' = w + scale * B' A', A' and B' the factors at their two levels. Shapes: A (r, d_in), B (d_out, r).

    Linear in: nothing. Cost: as `LowRank`, and a few passes over A and B.
    """

    scale: float = 1.0
    dropout: float = 0.0
    precise: ClassVar[bool] = True

    @property
    def plain(self) -> LowRank:
        return LowRank(self.scale, self.dropout)

    def factors(self, A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
        return self.plain.factors(onebit(A), onebit(B))

    def weight(self, w: Tensor, A: Tensor, B: Tensor) -> Tensor:
        return self.plain.weight(w, A=onebit(A), B=onebit(B))

    def output(self, x: Tensor, y: Tensor, base: Base, A: Tensor, B: Tensor) -> Tensor:
        return self.plain.output(x, y, base, onebit(A).to(x.dtype), onebit(B).to(x.dtype))

    def grouped(self, x: Tensor, y: Tensor, base: Base, A: Tensor, B: Tensor) -> Tensor:
        return self.plain.grouped(x, y, base, onebit(A).to(x.dtype), onebit(B).to(x.dtype))


def levelled(config: Any, pools: Mapping[str, Tensor], *ends: str) -> tuple[Any, dict[str, Tensor]]:
    """The pools of these names at their levels, which codec="onebit" stores exactly."""
    if config.stored:
        return config, dict(pools)
    with torch.no_grad():
        found = {n: onebit(p.float()) if n.endswith(ends) else p for n, p in pools.items()}
    return replace(config, stored=True), found


def compact(config: BiLoRA, pools: Mapping[str, Tensor]) -> tuple[BiLoRA, dict[str, Tensor]]:
    return levelled(config, pools, ".A", ".B")


@method(
    "bi-lora",
    BiLoRA,
    paper="Revisiting the Parameter Efficiency of Adapters from the Perspective of Precision Redundancy, "
    "arXiv 2307.16867",
    formula="sum over sites of r (d_in + d_out), of one bit each in a file with codec onebit",
    kinds=("linear", "expert"),
    lr=1e-3,
    fresh="B begins near zero, and at its two levels it is not zero",
    compact=compact,
    at_end=True,
    levels=True,
)
def plan(sites: Sequence[Site], config: BiLoRA) -> Plan:
    """h = W0 x + s B' A' x, P' = m + d z' with m and d mean and deviation of a factor P, z' = -+0.6745 by its sign.

    Shapes: A (r, d_in), B (d_out, r). Source: arXiv 2307.16867, section 3; github.com/JieShibo/PETL-ViT @026e4f1.
    Gradients: straight through the sign; m and d are in the graph. Differs: B is normal with deviation 0.001, without
    the cut at 0.002; an entry at its mean has the upper level, where the released code has a number between both; the
    scale is not searched for each task (the released files have 10 and 1 most often); classifiers keep all their bits.
    """
    bind: Any = (LowRank if config.stored else OneBitLowRank)(config.scale, config.dropout)
    pools, uses = {}, []
    for s in sites:
        pools[f"{s.name}.A"] = Pool((config.rank, s.inp), kaiming(s.inp))
        pools[f"{s.name}.B"] = Pool((s.out, config.rank), Normal(1e-3))
        uses.append(Use(s.name, bind, {k: Read(WHOLE, (f"{s.name}.{k}",)) for k in "AB"}))
    return Plan(pools, tuple(uses))
