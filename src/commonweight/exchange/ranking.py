"""An order of n places in ceil(log2 n) bits each."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def bits(n: int) -> int:
    """Of a place among n."""
    return max(1, (n - 1).bit_length())


def length(n: int) -> int:
    """Bytes of an order of n places."""
    return -(-n * bits(n) // 8)


def packed(order: Tensor) -> Tensor:
    """(n,) int64 -> (length(n),) uint8, the least bit of each place first."""
    shifts = np.arange(bits(len(order)))
    each = (order.numpy()[:, None] >> shifts & 1).astype(np.uint8)
    return torch.from_numpy(np.packbits(each.reshape(-1), bitorder="little"))


def unpacked(data: Tensor, n: int) -> Tensor:
    """(length(n),) uint8 -> (n,) int64. What was no order is none afterwards: see `is_order`."""
    each = np.unpackbits(data.numpy(), bitorder="little")[: n * bits(n)].reshape(n, bits(n)).astype(np.int64)
    return torch.from_numpy((each << np.arange(bits(n))).sum(1))


def is_order(order: Tensor) -> bool:
    """Whether every place is there once."""
    return bool((order < len(order)).all()) and bool((torch.bincount(order, minlength=len(order)) == 1).all())


def inverse(order: Tensor) -> Tensor:
    """The position of each place, (n,)."""
    return torch.empty_like(order).index_copy_(0, order, torch.arange(len(order)))
