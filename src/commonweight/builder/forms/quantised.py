"""Linear layers that hold their weight as whole numbers of a few bits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...bind.quantised import dequantised, on_grid, packed, rounded, unpacked


class Requantised:
    """W = Q(deq(grid) + s B A), on the same grid again; the input in `acts` bits, by the range of the step."""

    needs = (on_grid, unpacked, packed, dequantised, rounded)
    composed = True
    bits: int
    columns: int
    acts: int

    def grow(self: Any, bits: int, columns: int, acts: int) -> None:
        self.bits, self.columns, self.acts = bits, columns, acts

    def numbers(self: Any) -> Tensor:
        """Of the grid, (out, in)."""
        plain = dequantised(self.grid, self.scale, self.zero, self.bits, self.columns)
        return rounded(plain + self.scale.detach().mean() * (self.B @ self.A), self.scale, self.zero, self.bits)

    @property
    def weight(self: Any) -> Tensor:
        w = on_grid(self.numbers(), self.scale, self.zero)
        return w.mT if hasattr(self, "nf") else w  # Conv1D holds (in, out)

    def forward(self: Any, x: Tensor) -> Tensor:
        if self.acts:
            t = int(self.code)
            low, size = self.low[t], self.size[t]
            q = (x - low) / size
            q = (q + (q.round() - q).detach()).clamp(0, 2**self.acts - 1)
            x = q * size + low
        return super().forward(x)  # type: ignore[misc]

    def composed_weight(self: Any) -> Tensor:
        return self.weight

    @torch.no_grad()
    def merge(self: Any) -> None:
        """The update goes into the grid's numbers: the layer answers the same, and B is zero."""
        self.grid.copy_(packed(self.numbers(), self.bits))
        self.B.zero_()


class Elastic:
    """W = deq_b(grid_b) + B_b A_b of the mean of every group of columns, b = code."""

    needs = (on_grid, unpacked, dequantised)
    composed = True
    bits: list[int]
    columns: int

    def grow(self: Any, bits: list[int], columns: int) -> None:
        self.bits, self.columns = list(bits), columns

    @property
    def weight(self: Any) -> Tensor:
        b = int(self.code)
        if b not in self.bits:
            raise ValueError(f"code says {b} bits; this layer has grids of {self.bits}")
        scale, zero = getattr(self, f"scale{b}"), getattr(self, f"zero{b}")
        group = self.columns // scale.shape[-1]
        update = (getattr(self, f"B{b}") @ getattr(self, f"A{b}") / group).repeat_interleave(group, -1)
        w = dequantised(getattr(self, f"grid{b}"), scale, zero, b, self.columns) + update
        return w.mT if hasattr(self, "nf") else w  # Conv1D holds (in, out)

    def composed_weight(self: Any) -> Tensor:
        return self.weight

    @torch.no_grad()
    def merge(self: Any) -> None:
        """Every update goes into its grid's zero points: the layer answers the same, and all B are zero."""
        for b in self.bits:
            scale, low = getattr(self, f"scale{b}"), getattr(self, f"B{b}")
            group = self.columns // scale.shape[-1]
            getattr(self, f"zero{b}").sub_((low @ getattr(self, f"A{b}")) / group / scale)
            low.zero_()
