"""Rows that stand for no token, as mergekit 0.1.5 fills them: the mean of all rows that do."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from threading import Lock

import torch
from torch import Tensor

from ..sources.source import held
from .tokens import Mapped

_STEP = 1 << 20  # numbers at a time while a mean is taken


class Padded:
    """A Source over one whose embeddings and heads have an entry for each of `tokens` tokens, and some after them.

    Cost: a tensor's rows are read once more. Memory: a mean for each tensor, and while it is taken 2**20 numbers.
    """

    def __init__(self, own: Mapped, tokens: int):
        self.label, self._own, self._tokens, self._lock = own.label, own, tokens, Lock()
        self.shapes: Mapping[str, tuple[int, ...]] = own.shapes
        self.dtypes: Mapping[str, torch.dtype] = own.dtypes
        self.files: tuple[Path, ...] = own.files
        self.mapped, self.plain = own.mapped, own.plain
        self._means: dict[str, Tensor] = {}

    def flat(self, name: str, start: int, count: int) -> Tensor:
        axis = self._own.mapped.get(name)
        if axis == 1:
            return self._columns(name, start, count)
        width = math.prod(self.shapes[name][1:])
        end = self._tokens * width  # of what stands for a token
        if axis is None or start + count <= end:
            return self._own.flat(name, start, count)
        parts = [self._own.flat(name, start, end - start)] if start < end else []
        first, last = max(start, end), start + count
        rows = -(-last // width) - first // width
        return torch.cat([*parts, self._mean(name, width).repeat(rows)[first % width :][: last - first]])

    def _columns(self, name: str, start: int, count: int) -> Tensor:
        width = self.shapes[name][1]
        first, last = start // width, -(-(start + count) // width)
        rows = self._own.flat(name, first * width, (last - first) * width).view(-1, width).clone()
        rows[:, self._tokens :] = rows[:, : self._tokens].double().mean(1, keepdim=True).to(rows.dtype)
        return rows.view(-1)[start - first * width :][:count]

    def _mean(self, name: str, width: int) -> Tensor:
        with self._lock:
            if name not in self._means:
                total, step = torch.zeros(width, dtype=torch.float64), max(1, _STEP // width)
                for i in range(0, self._tokens, step):
                    n = min(step, self._tokens - i)
                    total += self._own.flat(name, i * width, n * width).view(n, width).double().sum(0)
                self._means[name] = (total / self._tokens).to(self.dtypes[name])
            return self._means[name]

    def read(self, name: str) -> Tensor:
        return self.flat(name, 0, math.prod(self.shapes[name])).view(self.shapes[name])

    def where(self, name: str) -> str:
        return self._own.where(name)

    def ahead(self, name: str) -> None:
        self._own.ahead(name)

    def held(self, count: int, threads: int) -> int:
        rows = sum(self.shapes[n][1] for n, axis in self._own.mapped.items() if axis == 0 and len(self.shapes[n]) > 1)
        return 8 * (rows + 2 * _STEP) + 8 * 2 * count * threads + held(self._own, count, threads)
