"""8 and 4 bits a number: whole multiples of one scale for every 64 numbers."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from ...core import CommonweightError, config

GROUP = 64
LEAST = 2.0**-120  # a scale below it is zero: bfloat16 keeps its precision, and the products stay normal numbers
BESIDE = 2.0**-13  # so are changes below this part of the first values beside them: what float32 adds to those
# is rounded, and must be exact enough for the scale to come out the same from the sum
CLIPPED = tuple(1 - 0.05 * i for i in range(9))  # 1, 0.95, ..., 0.6


@config
class Int8:
    """About 8.25 bits a number: value = first + s q, q in -127..127, a bfloat16 scale s for every 64 numbers in a row.

    Stored: uint8 (bytes,), the scales and then the q of the flat tensor. s is the group's largest change / 127.
    """

    uses_first: ClassVar[bool] = True
    needs_first: ClassVar[bool] = False

    def encode(self, value: Tensor, first: Tensor | None) -> Tensor:
        return _encode(value, first, 127, (1.0,))

    def decode(self, stored: Tensor, shape: tuple[int, ...], first: Tensor | None) -> Tensor:
        return _decode(stored, shape, first, 127)


@config
class Int4:
    """About 4.25 bits a number: as `Int8` with q in -7..7, stored as q + 8, two to a byte, the earlier one low.

    s is the group's largest change / 7 times that one of 1, 0.95, ..., 0.6 which leaves the least squared error;
    larger changes are clipped. benchmarks/codec_forms.py compares it with plain absmax, NF4 levels and other groups.
    """

    uses_first: ClassVar[bool] = True
    needs_first: ClassVar[bool] = False

    def encode(self, value: Tensor, first: Tensor | None) -> Tensor:
        return _encode(value, first, 7, CLIPPED)

    def decode(self, stored: Tensor, shape: tuple[int, ...], first: Tensor | None) -> Tensor:
        return _decode(stored, shape, first, 7)


def _encode(value: Tensor, first: Tensor | None, top: int, fractions: tuple[float, ...]) -> Tensor:
    """Symmetric quantisation in groups. top: the largest q. Cost: a few passes in float64 per fraction."""
    change = _groups(value.double() if first is None else value.double() - first.double())
    largest = change.abs().amax(1, keepdim=True)
    near = 0.0 if first is None else BESIDE * _groups(first.double()).abs().amax(1, keepdim=True)
    kept, steps, best = None, None, None
    for fraction in fractions:
        scale = (largest * (fraction / top)).bfloat16().double()
        scale = torch.where((scale < LEAST) | (scale * top < near), 0.0, scale)
        q = torch.where(scale > 0, change / scale, 0.0).round().clamp(-top, top)
        error = (q * scale - change).square().sum(1, keepdim=True)
        better = torch.ones_like(error, dtype=torch.bool) if best is None else error < best
        kept = scale if kept is None else torch.where(better, scale, kept)
        steps = q if steps is None else torch.where(better, q, steps)
        best = error if best is None else torch.where(better, error, best)
    assert kept is not None and steps is not None
    codes = steps.flatten()[: value.numel()].to(torch.int8)
    return torch.cat(
        [kept.flatten().bfloat16().view(torch.uint8), _pack(codes) if top == 7 else codes.view(torch.uint8)]
    )


def _decode(stored: Tensor, shape: tuple[int, ...], first: Tensor | None, top: int) -> Tensor:
    n = math.prod(shape)
    scales, codes = 2 * -(-n // GROUP), -(-n // 2) if top == 7 else n
    if stored.dtype != torch.uint8 or tuple(stored.shape) != (scales + codes,):
        raise CommonweightError(f"is {tuple(stored.shape)} {stored.dtype}, wanted {(scales + codes,)} torch.uint8")
    scale = stored[:scales].clone().view(torch.bfloat16).double()
    codes = stored[scales:].clone()
    q = _unpack(codes, n) if top == 7 else codes.view(torch.int8)
    change = (_groups(q.double()) * scale[:, None]).flatten()[:n].reshape(shape)
    return (change if first is None else change + first.double()).float()


def _groups(x: Tensor) -> Tensor:
    flat = x.flatten()
    return torch.nn.functional.pad(flat, (0, -len(flat) % GROUP)).reshape(-1, GROUP)


def _pack(q: Tensor) -> Tensor:
    nibbles = torch.nn.functional.pad(q + 8, (0, len(q) % 2)).to(torch.uint8).reshape(-1, 2)
    return nibbles[:, 0] | nibbles[:, 1] << 4


def _unpack(packed: Tensor, n: int) -> Tensor:
    return torch.stack([packed & 15, packed >> 4], 1).flatten()[:n].to(torch.int8) - 8
