"""Low-rank updates whose weights are routed here and not by an address, so that training can draw them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..address import logistic, mix, routing
from ..core import Base, serial
from .low_rank import LowRank, active


@serial
@dataclass(frozen=True)
class Drawn:
    """LowRank of an A and a B that are mixed here, in training by routing weights drawn anew at every call.

    Shapes: A (h, S, r, d_in / h), B (h, S, r, d_out / h), logits (h, S). Linear in: A and B, each alone, given the
    draw. Cost: as `Heads` and LowRank; in a mixed batch inventories are stacked, not the mixtures of them.
    """

    scale: float = 1.0
    dropout: float = 0.0
    anywhere: ClassVar[str] = "through"
    precise: ClassVar[bool] = True  # weights are mixed in float32
    draws: ClassVar[bool] = True

    def mixed(self, dtype: torch.dtype, draw: bool, A: Tensor, B: Tensor, logits: Tensor) -> dict[str, Tensor]:
        z = routing(logits, logistic(logits) if draw else None)
        return {"A": mix(A, z).to(dtype), "B": mix(B, z).mT.to(dtype)}

    def factors(self, **slots: Tensor) -> tuple[Tensor, Tensor]:
        return LowRank(self.scale).factors(**self.mixed(slots["A"].dtype, False, **slots))

    def weight(self, w: Tensor, **slots: Tensor) -> Tensor:
        return LowRank(self.scale).weight(w, **self.mixed(w.dtype, False, **slots))

    def output(self, x: Tensor, y: Tensor, base: Base, **slots: Tensor) -> Tensor:
        low = self.mixed(active(x, y), base.training, **slots)
        return LowRank(self.scale, self.dropout).output(x, y, base, **low)

    def grouped(self, x: Tensor, y: Tensor, base: Base, **slots: Tensor) -> Tensor:
        low = self.mixed(active(x, y), base.training, **slots)
        return LowRank(self.scale, self.dropout).grouped(x, y, base, **low)


@serial
@dataclass(frozen=True)
class Skills:
    """w' = w + scale sum_i z_i B_i A_i: low-rank skills run side by side as one, each times its weight.

    Shapes: A (n r, d_in), B (d_out, n r), weights (n,). routed: z is `routing` of them, in training with logistic noise
    where noise is set; else z is what is given. Linear in: A and B, each alone, given the draw. Cost: as LowRank of
    rank n r.
    """

    scale: float = 1.0
    dropout: float = 0.0
    routed: bool = False
    noise: bool = False
    anywhere: ClassVar[str] = "through"
    precise: ClassVar[bool] = True  # the weights are routed in float32

    @property
    def draws(self) -> bool:
        return self.routed and self.noise

    def slots(self, dtype: torch.dtype, draw: bool, A: Tensor, B: Tensor, weights: Tensor) -> dict[str, Tensor]:
        z = weights
        if self.routed:
            z = routing(weights, logistic(weights) if draw and self.noise else None)
        d = z.repeat_interleave(A.shape[-2] // z.shape[-1], -1)
        return {"A": A.to(dtype), "B": B.to(dtype), "d": d.to(dtype)}

    def factors(self, **slots: Tensor) -> tuple[Tensor, Tensor]:
        return LowRank(self.scale).factors(**self.slots(slots["A"].dtype, False, **slots))

    def weight(self, w: Tensor, **slots: Tensor) -> Tensor:
        return LowRank(self.scale).weight(w, **self.slots(w.dtype, False, **slots))

    def output(self, x: Tensor, y: Tensor, base: Base, **slots: Tensor) -> Tensor:
        low = self.slots(active(x, y), base.training, **slots)
        return LowRank(self.scale, self.dropout).output(x, y, base, **low)

    def grouped(self, x: Tensor, y: Tensor, base: Base, **slots: Tensor) -> Tensor:
        low = self.slots(active(x, y), base.training, **slots)
        return LowRank(self.scale, self.dropout).grouped(x, y, base, **low)
