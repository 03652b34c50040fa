"""Order statistics by counting: the first k elements of a stack, without sorting and without holding it.

Elements are ordered by a 32-bit key (the float's bits, in the float's order), and equal keys by index: the lower index
comes first. Every round counts one 16-bit digit of (key, index) among the elements that agree with what is known;
counts add up over pieces, so the result does not depend on how the data is cut or in what order it is read.
Two rounds find a threshold; only where it is shared by several elements do rounds over the index follow. Where all of
the data is at hand, one partition does all of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

BINS = 1 << 16
_LOW, _HIGH = -(1 << 31), 1 << 31  # of a key; every key lies in [_LOW, _HIGH)
NOTHING = _LOW  # the key of a cut before all elements
_SHIFTS = (32, 16, 0)  # of the index: 48 bits


def key(x: Tensor, descending: bool = False) -> Tensor:
    """int32, in the order of the float32 values; minus zero equals zero."""
    bits = (x.float() + 0.0).contiguous().view(torch.int32)  # a new tensor
    bits ^= (bits >> 31).bitwise_and_(0x7FFFFFFF)
    return bits.bitwise_not_() if descending else bits


def magnitude_key(x: Tensor) -> Tensor:
    """key(x.abs(), descending=True), in fewer steps."""
    return (x.float().contiguous().view(torch.int32) & 0x7FFFFFFF).bitwise_not_()


def value(k: int) -> float:
    """The float32 whose ascending key this is."""
    return bits(k if k >= 0 else k ^ 0x7FFFFFFF)


def bits(pattern: int) -> float:
    """The float32 of these bits."""
    return torch.tensor([pattern], dtype=torch.int32).view(torch.float32).item()


@dataclass(frozen=True)
class Cut:
    """The first elements: those with a smaller key, or the same key and a smaller index."""

    key: int
    index: int = 0

    def holds(self, keys: Tensor, first: int) -> Tensor:
        """bool (n,), of keys (n,) whose indices count from `first`."""
        if self.key >= _HIGH:
            return torch.ones_like(keys, dtype=torch.bool)
        mask = keys.numpy() < self.key  # NumPy compares at several times the speed
        if self.index > first:
            same = np.flatnonzero(keys.numpy() == self.key)
            mask[same[same < self.index - first]] = True
        return torch.from_numpy(mask)


@dataclass(frozen=True)
class Find:
    """The search for the first `rank` elements: `level` digits are known.

    exact: the key of the last of them is wanted, and no more.
    """

    rank: int
    exact: bool = False
    level: int = 0
    key: int = 0
    index: int = 0
    cut: Cut | None = None

    def count(self, keys: Tensor, first: int) -> Tensor:
        """How many elements have each value of the next digit, among those that agree with the known ones."""
        if self.cut is not None:
            return torch.zeros(BINS, dtype=torch.int64)
        if self.level == 0:
            return torch.bincount((keys >> 16).add_(BINS >> 1), minlength=BINS)
        k = keys.numpy()
        if self.level == 1:
            digits = k[np.flatnonzero((k >> 16) == self.key)] & 0xFFFF
        else:
            index, shift = np.flatnonzero(k == self.key) + first, _SHIFTS[self.level - 2]
            digits = index[index >> (shift + 16) == self.index] >> shift & 0xFFFF
        return torch.from_numpy(np.bincount(digits, minlength=BINS))

    def idle(self, first: int, last: int) -> bool:
        """Whether there is nothing to count among the indices first .. last - 1."""
        if self.cut is not None:
            return True
        width = _SHIFTS[self.level - 2] + 16 if self.level >= 3 else 64
        return last <= self.index << width or first >= (self.index + 1) << width

    def next(self, counts: Tensor) -> Find:
        if self.cut is not None:
            return self
        if self.rank <= 0:
            return replace(self, cut=Cut(_LOW))
        total = counts.cumsum(0)
        if self.level == 0 and self.rank >= int(total[-1]) and not self.exact:
            return replace(self, cut=Cut(_HIGH))
        digit = int(torch.searchsorted(total, self.rank))
        rest = self.rank - (int(total[digit - 1]) if digit else 0)
        whole = rest == int(counts[digit])
        if self.level == 0:
            k = digit - (BINS >> 1)
            return replace(
                self, rank=rest, level=1, key=k, cut=Cut((k + 1) << 16) if whole and not self.exact else None
            )
        if self.level == 1:
            k = (self.key << 16) + digit
            return replace(self, rank=rest, level=2, key=k, cut=Cut(k + 1) if whole or self.exact else None)
        i, shift = self.index << 16 | digit, _SHIFTS[self.level - 2]
        cut = Cut(self.key, (i + 1) << shift) if whole else None
        return replace(self, rank=rest, level=self.level + 1, index=i, cut=cut)

    def short(self, indices: int) -> Find:
        """Skips the digits that are zero in every index below `indices`."""
        level = self.level
        while 2 <= level < 4 and self.index == 0 and self.cut is None and indices <= 1 << _SHIFTS[level - 2]:
            level += 1
        return replace(self, level=level)


Finds = tuple[tuple[Find, ...], ...]  # models x cuts


def start(ranks: Sequence[Sequence[int]], exact: bool = False) -> Finds:
    return tuple(tuple(Find(r, exact) for r in row) for row in ranks)


def count(finds: Finds, keys: Tensor, first: int) -> Tensor:
    """(models, cuts, BINS) int64, for keys (models, n) whose indices count from `first`; (models, 1, BINS) as long as
    all cuts of a model look for the same.
    """
    shared = all(len({(f.cut is None, f.level, f.key, f.index) for f in row}) == 1 for row in finds)
    rows = [[row[0]] if shared else row for row in finds]
    return torch.stack([torch.stack([f.count(k, first) for f in row]) for row, k in zip(rows, keys, strict=True)])


def idle(finds: Finds, first: int, last: int) -> bool:
    """Whether this round has nothing to count among the indices first .. last - 1."""
    return all(f.idle(first, last) for row in finds for f in row)


def at_once(ranks: Sequence[Sequence[int]], keys: Tensor) -> Tensor:
    """(models, cuts, 2) int64: the cuts' keys and indices, where all elements (models, n) are at hand."""
    n, out = keys.shape[1], []
    for row, k in zip(ranks, keys.numpy(), strict=True):
        inside = sorted({r - 1 for r in row if 0 < r < n})
        parted = np.partition(k, inside) if inside else k
        for r in row:
            if not 0 < r < n:
                out.append((_LOW, 0) if r <= 0 else (_HIGH, 0))
                continue
            last = int(parted[r - 1])
            same = np.flatnonzero(k == last)
            left = r - int(np.count_nonzero(k < last))
            out.append((last + 1, 0) if left == len(same) else (last, int(same[left - 1]) + 1))
    return torch.tensor(out).view(len(ranks), -1, 2)


def found(cuts: Tensor) -> Finds:
    """What `at_once` found, as the end of a search."""
    return tuple(tuple(Find(0, cut=Cut(k, i)) for k, i in row) for row in cuts.tolist())


def step(finds: Finds, counts: Tensor, indices: int = 1 << 48) -> tuple[Finds, bool]:
    """The next round's searches, and whether there is none to do. indices: a bound of every index."""
    out = tuple(
        tuple(f.next(c).short(indices) for f, c in zip(row, cs.expand(len(row), -1), strict=True))
        for row, cs in zip(finds, counts, strict=True)
    )
    return out, all(f.cut is not None for row in out for f in row)


def held(finds: Finds, keys: Tensor, first: int, which: int = 0) -> Tensor:
    """bool (models, n): the first elements of every model's own order."""
    return torch.stack([row[which].cut.holds(k, first) for row, k in zip(finds, keys, strict=True)])  # type: ignore[union-attr]
