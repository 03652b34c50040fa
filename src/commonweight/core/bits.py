"""One bit for each number: eight in a byte, the first in its lowest bit."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


def packed(mask: Tensor) -> Tensor:
    """uint8, eight numbers of a bool mask in each."""
    flat = nn.functional.pad(mask.flatten().to(torch.uint8), (0, -mask.numel() % 8)).view(-1, 8)
    out = flat[:, 0].clone()
    for i in range(1, 8):
        out |= flat[:, i] << i
    return out


def unpacked(bits: Tensor, shape: Sequence[int]) -> Tensor:
    """The bool mask of that shape. Shapes: bits (..., ceil(n / 8)) -> (..., *shape)."""
    by = 1 << torch.arange(8, dtype=torch.uint8, device=bits.device)
    flat = ((bits[..., None] & by) != 0).flatten(-2)[..., : math.prod(shape)]
    return flat.reshape(*bits.shape[:-1], *shape)
