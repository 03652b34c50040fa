"""First values of a quantised weight: whole numbers of a few bits, a scale and a zero point for each row or group."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..bind.quantised import packed, rounded
from ..core import Rng, serial

STEPS = 80  # ranges that are tried
POWER = 2.4  # of the error


@serial
@dataclass(frozen=True)
class Grid:
    """Of a weight: part "codes" (out, bytes) uint8 | "scale" | "zero", each (out, g).

    w ~ scale (q - zero), q in [0, 2**bits). The range of a row (of a group of its columns) is its smallest to its
    largest number, or with `search` the best of 80 shares of that, by the mean of |error|^2.4 (EfficientDM's code).
    Cost: one rounding of the weight, or 80.
    """

    derived = True
    of: str
    bits: int
    part: str
    groups: int = 1
    search: bool = False
    transposed: bool = False

    def __call__(self, shape: tuple[int, ...], rng: Rng, base: Any) -> Tensor:
        key = ("grid", self.of, self.bits, self.groups, self.search, self.transposed)
        scale, zero, w = base.once(key, lambda: self._made(base))
        if self.part == "codes":
            return packed(rounded(w, scale, zero, self.bits), self.bits)
        return (scale if self.part == "scale" else zero).clone()

    def _made(self, base: Any) -> tuple[Tensor, Tensor, Tensor]:
        w = base.stored(self.of).float()
        w = w.mT.contiguous() if self.transposed else w
        parts = w.unflatten(-1, (self.groups, -1))
        low, high = parts.amin(-1).clamp_max(0), parts.amax(-1).clamp_min(0)
        scale, zero = _of(low, high, self.bits)
        best = self._error(w, parts, scale, zero)
        for i in range(1, STEPS if self.search else 1):
            one = _of(low * (1 - i / STEPS), high * (1 - i / STEPS), self.bits)
            error = self._error(w, parts, *one)
            better, best = error < best, torch.minimum(error, best)
            scale, zero = torch.where(better, one[0], scale), torch.where(better, one[1], zero)
        return scale, zero, w

    def _error(self, w: Tensor, parts: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
        q = rounded(w, scale, zero, self.bits).unflatten(-1, (self.groups, -1))
        return ((q - zero[..., None]) * scale[..., None] - parts).abs().pow(POWER).mean(-1)


def _of(low: Tensor, high: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    scale = ((high - low) / (2**bits - 1)).clamp_min(1e-8)
    return scale, (-low / scale).round()
