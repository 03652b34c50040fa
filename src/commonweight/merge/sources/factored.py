"""Updates that are products of factors, as a source: rows of B A are made as they are read, none is kept."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor


def product(left: Tensor, right: Tensor, start: int, count: int) -> Tensor:
    """Elements start .. start + count of left @ right, flat: only the rows that they lie in are made."""
    width = right.shape[1]
    first, last = start // width, -(-(start + count) // width)
    return (left[first:last] @ right).view(-1)[start - first * width :][:count]


class Pair(NamedTuple):
    """scale B A: A (r, d_in), B (d_out, r), float32."""

    A: Tensor
    B: Tensor
    scale: float = 1.0


class Factored:
    """Name -> update (d_out, d_in), float32. Memory: the caller's factors, and the rows that it gives."""

    files: tuple[Path, ...] = ()

    def __init__(self, label: str, pairs: Mapping[str, Pair]):
        self.label, self._pairs = label, pairs
        self.shapes: Mapping[str, tuple[int, ...]] = {n: (len(p.B), p.A.shape[1]) for n, p in pairs.items()}
        self.dtypes: Mapping[str, torch.dtype] = dict.fromkeys(pairs, torch.float32)

    def flat(self, name: str, start: int, count: int) -> Tensor:
        a, b, scale = self._pairs[name]
        return product(b, a, start, count).mul_(scale)

    def read(self, name: str) -> Tensor:
        return self.flat(name, 0, math.prod(self.shapes[name])).view(self.shapes[name])

    def where(self, name: str) -> str:
        return self.label

    def ahead(self, name: str) -> None:
        pass


class Zeros:
    """The base of updates."""

    files: tuple[Path, ...] = ()

    def __init__(self, label: str, shapes: Mapping[str, tuple[int, ...]]):
        self.label, self.shapes = label, shapes
        self.dtypes: Mapping[str, torch.dtype] = dict.fromkeys(shapes, torch.float32)

    def flat(self, name: str, start: int, count: int) -> Tensor:
        return torch.zeros(count)

    def read(self, name: str) -> Tensor:
        return torch.zeros(self.shapes[name])

    def where(self, name: str) -> str:
        return self.label

    def ahead(self, name: str) -> None:
        pass
