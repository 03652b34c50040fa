"""Whole numbers in rising order, such as the places of a sparse method: their gaps, exactly."""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from ...core import CommonweightError, config
from . import golomb


@config
class Ordered:
    """Whole numbers >= 0 that rise along the last dimension; others are stored as they are. Nothing is lost.

    Stored: uint8 (bytes,): the low bits b of a gap (1 byte), then the gaps less one, their low parts of b bits and
    their high parts in unary, the rows one after another. At one place in 200 about 9 bits a place, in place of 32.
    """

    uses_first: ClassVar[bool] = False
    needs_first: ClassVar[bool] = False
    dtype: ClassVar[str] = "int32"

    def encode(self, value: Tensor, first: Tensor | None) -> Tensor:
        if value.dtype != torch.int32 or not value.numel() or value.dim() == 0:
            return value
        gaps = np.diff(value.reshape(-1, value.shape[-1]).numpy().astype(np.int64), prepend=-1, axis=1).flatten() - 1
        if gaps.min() < 0:
            return value
        b, high, low = golomb.coded(gaps)
        body = b"".join(np.packbits(part, bitorder="little").tobytes() for part in (low, high))
        return torch.frombuffer(bytearray(bytes([b]) + body), dtype=torch.uint8)

    @staticmethod
    def most(rows: int, k: int, below: int) -> int:
        """Bytes that rows of k numbers below `below` take at most, wherever they lie; drawn ones nearly so."""
        spare = rows * max(0, below - k)
        return 3 + min(-(-(rows * k * (1 + b) + (spare >> b)) // 8) for b in range(32))

    def decode(self, stored: Tensor, shape: tuple[int, ...], first: Tensor | None) -> Tensor:
        if stored.dtype != torch.uint8 and tuple(stored.shape) == tuple(shape):
            return stored
        k = math.prod(shape)
        if stored.dtype != torch.uint8 or stored.dim() != 1 or not len(stored) or not k:
            raise CommonweightError(f"is {tuple(stored.shape)} {stored.dtype}, wanted the bytes of {k} numbers")
        gaps = golomb.decoded(stored[1:].numpy(), int(stored[0]), k)
        if gaps is None:
            raise CommonweightError(f"is other than the list of {k} numbers that was wanted: it was altered")
        found = np.cumsum(gaps.reshape(-1, shape[-1]) + 1, axis=1) - 1
        if found.max() >= 1 << 31:
            raise CommonweightError("has a number of more than 31 bits: it was altered")
        return torch.from_numpy(found.astype(np.int32)).reshape(shape)
