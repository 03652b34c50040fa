"""A layer of which a tenant leaves heads or neurons out, with a low-rank update beside it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..core import Base, serial
from ..core.bits import unpacked
from .thinned import Thinned


@serial
@dataclass(frozen=True)
class Pruned:
    """`Thinned`, whose mask is m, or one bit for each of `parts` parts of x, with `width` numbers in each.

    numbers: of the base's that a part is made of, here and in the layers in front; for who counts what is left.
    Shapes: A (r, d_in), B (d_out, r), both or none; m (parts,) or bits (ceil(parts / 8),) uint8. Linear in: A and B,
    each alone. Cost: as `Thinned`; a file holds a byte for eight parts.
    """

    parts: int
    width: int
    numbers: int
    scale: float = 1.0
    dropout: float = 0.0

    def weight(self, w: Tensor, **slots: Tensor) -> Tensor:
        return self._thinned.weight(w, **self._masked(slots, w))

    def bias(self, b: Tensor, **slots: Tensor) -> Tensor:
        return b

    def output(self, x: Tensor, y: Tensor, base: Base, **slots: Tensor) -> Tensor:
        return self._thinned.output(x, y, base, **self._masked(slots, x))

    def grouped(self, x: Tensor, y: Tensor, base: Base, **slots: Tensor) -> Tensor:
        """`output` of n readers at once: x (n, T, d_in), A (n, r, d_in), ..."""
        return self._thinned.grouped(x, y, base, **self._masked(slots, x))

    @property
    def _thinned(self) -> Thinned:
        return Thinned(self.scale, self.dropout)

    def _masked(self, slots: dict[str, Tensor], like: Tensor) -> dict[str, Tensor]:
        bits = slots.pop("bits", None)
        return slots if bits is None else {**slots, "m": unpacked(bits, (self.parts,)).to(like.dtype)}
