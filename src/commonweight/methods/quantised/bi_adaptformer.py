"""Bi-AdaptFormer: a small network beside the feed-forward part whose matrices have one bit for each number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn import functional as F

from ...address import WHOLE
from ...bind.low_rank import each
from ...core import Base, Normal, Plan, Pool, Read, Site, Use, config, kaiming, option, serial
from ...core.onebit import onebit
from ..registry import method
from .bi_lora import levelled


@config
class BiAdaptFormer:
    size: int = option(32, "width r of the bottleneck", ge=1)
    scale: float = option(10.0, "factor on what the adapter adds", gt=0)
    dropout: float = option(0.0, "dropout on the bottleneck, in training", ge=0, le=0.95)
    stored: bool = option(False, "the matrices are at their two levels already, as `Host.compact` leaves them")


@serial
@dataclass(frozen=True)
class OneBitParallel:
    """y' = y + scale up' relu(down' x), x what the part is given, down' and up' at their two levels.

    Shapes: down (r, d_in), up (d_out, r). Linear in: nothing; stored: up. Cost: T r (d_in + d_out) products.
    """

    scale: float = 1.0
    dropout: float = 0.0
    stored: bool = False
    precise: ClassVar[bool] = True

    def levels(self, x: Tensor, down: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
        down, up = (p if self.stored else onebit(p) for p in (down, up))
        return down.to(x.dtype), up.to(x.dtype)

    def output(self, x: Tensor, y: Tensor, base: Base, down: Tensor, up: Tensor) -> Tensor:
        down, up = self.levels(x, down, up)
        return y + self.scale * F.linear(F.dropout(F.relu(F.linear(x, down)), self.dropout, base.training), up)

    def grouped(self, x: Tensor, y: Tensor, base: Base, down: Tensor, up: Tensor) -> Tensor:
        """`output` of n readers at once: x (n, T, d_in), down (n, r, d_in), ..."""
        down, up = self.levels(x, down, up)
        return y + self.scale * each(F.dropout(F.relu(each(x, down)), self.dropout, base.training), up)


def compact(config: BiAdaptFormer, pools: Mapping[str, Tensor]) -> tuple[BiAdaptFormer, Mapping[str, Tensor]]:
    return levelled(config, pools, ".down", ".up")


@method(
    "bi-adaptformer",
    BiAdaptFormer,
    paper="Revisiting the Parameter Efficiency of Adapters from the Perspective of Precision Redundancy, "
    "arXiv 2307.16867",
    formula="sum over parts of r (d_in + d_out), of one bit each in a file with codec onebit",
    kinds=("ffn",),
    named=("attention",),
    lr=1e-3,
    fresh="up begins near zero, and at its two levels it is not zero",
    size=("size",),
    compact=compact,
    at_end=True,
    levels=True,
)
def plan(sites: Sequence[Site], config: BiAdaptFormer) -> Plan:
    """y' = y + s up' relu(down' x): x what the feed-forward part is given, y what it gives before it is added.

    Shapes: down (r, d_in), up (d_out, r), no biases. Levels and gradients as those of `bi-lora`. It cannot be merged
    into weights. Source: arXiv 2307.16867; github.com/JieShibo/PETL-ViT @026e4f1 (binary_adapter/adaptformer.py).
    Differs: in models whose norm stands before a part, x is the normed state, theirs the state before it; up is normal
    with deviation 0.001, without the cut at 0.002; the scale is not searched for each task.
    """
    pools, uses = {}, []
    for s in sites:
        pools[f"{s.name}.down"] = Pool((config.size, s.inp), kaiming(s.inp))
        pools[f"{s.name}.up"] = Pool((s.out, config.size), Normal(1e-3))
        bind = OneBitParallel(config.scale, config.dropout, config.stored)
        uses.append(Use(s.name, bind, {k: Read(WHOLE, (f"{s.name}.{k}",)) for k in ("down", "up")}))
    return Plan(pools, tuple(uses))
