"""Order statistics by counting: the first k elements of a stack, without sorting and without holding it.

Elements are ordered by a 32-bit key (the float's bits, in the float's order), and equal keys by index: the lower index
comes first. Every round counts one 16-bit digit of (key, index) among the elements that agree with what is known;
counts add up over pieces, so the result does not depend on how the data is cut or in what order it is read.
Two rounds find a threshold; only where it is shared by several elements do rounds over the index follow.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

BINS = 1 << 16
_SHIFTS = (32, 16, 0)  # of the index: 48 bits


def key(x: Tensor, descending: bool = False) -> Tensor:
    """int64 in [0, 2**32), in the order of the float32 values; minus zero equals zero."""
    bits = (x.float() + 0.0).contiguous().view(torch.int32).to(torch.int64) & 0xFFFFFFFF
    ordered = torch.where(bits >= 1 << 31, 0xFFFFFFFF - bits, bits + (1 << 31))
    return 0xFFFFFFFF - ordered if descending else ordered


def value(k: int) -> float:
    """The float32 whose ascending key this is."""
    bits = 0xFFFFFFFF - k if k < 1 << 31 else k - (1 << 31)
    return torch.tensor([bits - (1 << 32) if bits >= 1 << 31 else bits], dtype=torch.int32).view(torch.float32).item()


@dataclass(frozen=True)
class Cut:
    """The first elements: those with a smaller key, or the same key and a smaller index."""

    key: int
    index: int = 0

    def holds(self, keys: Tensor, index: Tensor) -> Tensor:
        return (keys < self.key) | ((keys == self.key) & (index < self.index))


@dataclass(frozen=True)
class Find:
    """The search for the first `rank` elements: `level` digits are known; `exact`: the key of the last is wanted
    too.
    """

    rank: int
    exact: bool = False
    level: int = 0
    key: int = 0
    index: int = 0
    cut: Cut | None = None

    def count(self, keys: Tensor, index: Tensor) -> Tensor:
        """How many elements have each value of the next digit, among those that agree with the known ones."""
        if self.cut is not None:
            return torch.zeros(BINS, dtype=torch.int64)
        keys, index = keys.reshape(-1), index.reshape(-1)
        if self.level == 0:
            digits = keys >> 16
        elif self.level == 1:
            digits = keys[keys >> 16 == self.key] & 0xFFFF
        else:
            shift = _SHIFTS[self.level - 2]
            digits = index[(keys == self.key) & (index >> (shift + 16) == self.index)] >> shift & 0xFFFF
        return torch.bincount(digits, minlength=BINS)

    def next(self, counts: Tensor) -> Find:
        if self.cut is not None:
            return self
        if self.rank <= 0:
            return replace(self, cut=Cut(0))
        total = counts.cumsum(0)
        if self.level == 0 and self.rank >= int(total[-1]) and not self.exact:
            return replace(self, cut=Cut(1 << 33))
        digit = int(torch.searchsorted(total, self.rank))
        rest = self.rank - (int(total[digit - 1]) if digit else 0)
        whole = rest == int(counts[digit])
        if self.level == 0:
            cut = Cut((digit + 1) << 16) if whole and not self.exact else None
            return replace(self, rank=rest, level=1, key=digit, cut=cut)
        if self.level == 1:
            k = self.key << 16 | digit
            return replace(self, rank=rest, level=2, key=k, cut=Cut(k + 1) if whole or self.exact else None)
        i, shift = self.index << 16 | digit, _SHIFTS[self.level - 2]
        return replace(
            self, rank=rest, level=self.level + 1, index=i, cut=Cut(self.key, (i + 1) << shift) if whole else None
        )


Finds = tuple[tuple[Find, ...], ...]  # models x cuts


def start(ranks: tuple[tuple[int, ...], ...], exact: bool = False) -> Finds:
    return tuple(tuple(Find(r, exact) for r in row) for row in ranks)


def count(finds: Finds, keys: Tensor, index: Tensor) -> Tensor:
    """(models, cuts, BINS) int64, for a stack of keys (models, n)."""
    return torch.stack([torch.stack([f.count(k, index) for f in row]) for row, k in zip(finds, keys, strict=True)])


def step(finds: Finds, counts: Tensor) -> tuple[Finds, bool]:
    out = tuple(tuple(f.next(c) for f, c in zip(row, cs, strict=True)) for row, cs in zip(finds, counts, strict=True))
    return out, all(f.cut is not None for row in out for f in row)


def held(finds: Finds, keys: Tensor, index: Tensor, which: int = 0) -> Tensor:
    """bool (models, n): the first elements of every model's own order."""
    return torch.stack([row[which].cut.holds(k, index) for row, k in zip(finds, keys, strict=True)])  # type: ignore[union-attr]
