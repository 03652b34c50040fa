"""What every call of a loop is told: where its numbers lie, and in what format."""

from __future__ import annotations

import threading
from array import array
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

BLOCK = 2048  # as in kernel/numbers.py
KINDS = {torch.bfloat16: 0, torch.float16: 1, torch.float32: 2}
WINDOW = 17  # numbers that a search has, as in kernel/counting.py
ROW = 4096  # bytes of a digest's row
_spare = threading.local()


def whole(numbers: Iterable[int]) -> array[int]:
    """int64, addresses among them; NumPy takes several times as long to make an array of a few."""
    return array("q", numbers)


class Arrays(NamedTuple):
    """kinds, places: of tensors, which must live as long."""

    kinds: array[int]
    places: array[int]

    @property
    def told(self) -> tuple[int, int]:
        return self.kinds.buffer_info()[0], self.places.buffer_info()[0]


def arrays(tensors: Sequence[Tensor]) -> Arrays:
    return Arrays(whole([KINDS[x.dtype] for x in tensors]), whole([x.data_ptr() for x in tensors]))


def scratch(models: int) -> int:
    """The address of this thread's own numbers between the steps: a block for each model, and a dozen more."""
    return room("blocks", (models + 12) * BLOCK).ctypes.data


def room(name: str, numbers: int) -> np.ndarray:
    """float32: this thread's own room of a name, for at least so many numbers; what was there is lost."""
    held = getattr(_spare, name, None)
    if held is None or held.size < numbers:
        held = np.empty(numbers, np.float32)
        setattr(_spare, name, held)
    return held


class Sums(NamedTuple):
    """Of the words of a piece's bytes, by rows and by columns: int64."""

    rows: np.ndarray
    columns: np.ndarray


class Digests:
    """Room for the sums of some tensors (n,). told: its address and what one tensor takes of it, or zeros."""

    def __init__(self, tensors: Sequence[Tensor], wanted: bool):
        stride = BLOCK // 4 + tensors[0].numel() * 4 // ROW
        self._bytes = [x.nbytes for x in tensors] if wanted else []
        self._sums = np.zeros((len(self._bytes), stride), np.int64)
        self.told = (self._sums.ctypes.data, stride) if wanted else (0, 0)

    def clear(self) -> None:
        self._sums[:] = 0

    def found(self) -> list[Sums]:
        columns = BLOCK // 4
        return [Sums(s[columns:][: n // ROW], s[:columns]) for s, n in zip(self._sums, self._bytes)]
