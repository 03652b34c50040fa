"""A weight of which a tenant leaves numbers out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..core import Base, serial
from ..core.bits import unpacked


@serial
@dataclass(frozen=True)
class Masked:
    """w' = m w, m one bit for each number of w: other tenants read all of w.

    Shapes: bits (ceil(d_out d_in / 8),) uint8, row after row, see `core.bits`. Linear in: nothing. Cost: what is left
    out is a matrix of the weight's size, whose product with x is taken off y.
    """

    anywhere: ClassVar[str] = "through"

    def weight(self, w: Tensor, bits: Tensor) -> Tensor:
        return w * unpacked(bits, w.shape)

    def reads(self, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int | None, bool]:
        return None, False

    def output(self, x: Tensor, y: Tensor, base: Base, bits: Tensor) -> Tensor:
        w = base.weight
        return y - base.call(x, (w * ~unpacked(bits, w.shape)).to(y.dtype), None)

    def grouped(self, x: Tensor, y: Tensor, base: Base, bits: Tensor) -> Tensor:
        """`output` of n readers at once: x (n, T, d_in), bits (n, ...)."""
        w = base.weight
        return y - base.many(x, (w * ~unpacked(bits, w.shape)).to(y.dtype))
