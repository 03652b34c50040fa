"""Weights on a grid of a few bits with a low-rank update: one that is rounded to anew, or one of several."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ..core import serial


def packed(q: Tensor, bits: int) -> Tensor:
    """Whole numbers below 2**bits, 8 // bits to a byte, the first one lowest. Shapes: (out, in) -> (out, bytes)."""
    per = 8 // bits
    q = F.pad(q.to(torch.uint8), (0, -q.shape[-1] % per)).unflatten(-1, (-1, per))
    return sum(q[..., i] << (i * bits) for i in range(per))  # type: ignore[return-value]


def unpacked(codes: Tensor, bits: int, columns: int) -> Tensor:
    """The inverse of `packed`, for so many columns."""
    per = 8 // bits
    parts = [(codes >> (i * bits)) & (2**bits - 1) for i in range(per)]
    return torch.stack(parts, -1).flatten(-2)[..., :columns]


def dequantised(codes: Tensor, scale: Tensor, zero: Tensor, bits: int, columns: int) -> Tensor:
    """scale (q - zero). Shapes: codes (out, bytes), scale and zero (out, g), for g groups of columns -> (out, in)."""
    return on_grid(unpacked(codes, bits, columns).to(scale.dtype), scale, zero)


def on_grid(q: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """scale (q - zero) of numbers q (out, in), for g groups of columns."""
    return (scale[..., None] * (q.unflatten(-1, (scale.shape[-1], -1)) - zero[..., None])).flatten(-2)


def rounded(w: Tensor, scale: Tensor, zero: Tensor, bits: int) -> Tensor:
    """The numbers q of the grid next to w, (out, in), as floats. Gradients pass as if nothing were rounded; what lies
    beyond the grid gets none."""
    each = (w.unflatten(-1, (scale.shape[-1], -1)) / scale[..., None]).flatten(-2)
    each = each + (each.round() - each).detach()
    return (each.unflatten(-1, (zero.shape[-1], -1)) + zero[..., None]).flatten(-2).clamp(0, 2**bits - 1)


@serial
@dataclass(frozen=True)
class Requantised:
    """w' = Q(deq(grid) + s B A): the sum is on that grid again, so it can be stored as they are.

    s: the mean of the scales, so that one learning rate moves every layer by as much of its grid. Shapes: grid
    (out, bytes) uint8, scale and zero (out, g), A (r, in), B (out, r); step (1,), low and size (n,): the range in which
    the layer's input is rounded to `acts` bits at step t of n. Linear in: none of them. Cost: as many roundings as
    numbers. Source: EfficientDM, arXiv 2310.03270, section 3.2.
    """

    bits: int
    columns: int
    acts: int = 0

    def weight(self, w: Tensor, grid: Tensor, scale: Tensor, zero: Tensor, A: Tensor, B: Tensor) -> Tensor:
        plain = dequantised(grid, scale, zero, self.bits, self.columns)
        q = rounded(plain + scale.detach().mean() * (B @ A), scale, zero, self.bits)
        return on_grid(q, scale, zero)


@serial
@dataclass(frozen=True)
class Elastic:
    """w' = deq_b(grid_b) + B_b A_b P_g, b = code: one of several grids, each with an update of its own.

    P_g: the mean of every g columns, so that the update goes into the grid's zero points. Shapes: code (1,), the bits;
    for each b grid<b> (out, bytes) uint8, scale<b> and zero<b> (out, in / g), A<b> (r, in / g), B<b> (out, r). Linear
    in: each A and B alone (affine). Source: LLM-QFA, arXiv 2405.20202, after QA-LoRA, arXiv 2309.14717.
    """

    bits: tuple[int, ...]
    columns: int

    def weight(self, w: Tensor, code: Tensor, **of: Tensor) -> Tensor:
        b = int(code)
        scale = of[f"scale{b}"]
        group = self.columns // scale.shape[-1]
        update = (of[f"B{b}"] @ of[f"A{b}"] / group).repeat_interleave(group, -1)
        return dequantised(of[f"grid{b}"], scale, of[f"zero{b}"], b, self.columns) + update
