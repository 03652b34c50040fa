"""Order statistics by counting: the first elements of a stack, without sorting it and without holding it.

Elements are ordered by their float32 value, and equal ones by index: the lower index comes first (minus zero equals
zero; for the largest magnitudes first, give -|x|). A search goes in rounds. The first may see a sample, which says in
what window of values the cut lies; the next counts, over everything, what comes before the window and what is in it,
by value; where many elements share the cut's value, their indices are counted. A window that missed is widened, so
that the cut is exact whatever the sample was. Counts add up over pieces: the cut does not depend on how the data is
split or in what order it is read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import reduce
from typing import Any

import numpy as np
import torch
from torch import Tensor

_LOW, _HIGH = -0x7F800001, 0x7F800001  # of keys: that of minus infinity, and the first behind infinity
NOTHING = _LOW  # the key of a cut before all elements
_BITS = 16  # of the bins of a round that counts everything
_BINS = 1 << 22  # that all searches of a survey hold at most
_SAMPLE = 1 << 21  # elements of all models together
_FEW = 1 << 15
_DENSE = 1 << 20  # bins that are added up without sorting them
_PACKED = 1 << 14  # elements that are counted at once
_HELD = 1 << 19  # elements that wait to be counted into bins
_SPREAD = 16.0  # of the window, in deviations of a sample of independent elements; neighbours are alike


def key(x: np.ndarray) -> np.ndarray:
    """int64, in the order of the float32 values; minus zero equals zero."""
    bits = (x + np.float32(0)).view(np.int32).astype(np.int64)
    return np.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


def value(k: int) -> float:
    """The float32 whose key this is."""
    return bits(k if k >= 0 else k ^ 0x7FFFFFFF)


def bits(pattern: int) -> float:
    """The float32 of these bits."""
    return np.array(pattern, dtype=np.int64).astype(np.int32).view(np.float32).item()


def falling(x: Tensor) -> Tensor:
    """-|x|, in x's own place."""
    x.view(torch.int32).bitwise_or_(-(1 << 31))
    return x


@dataclass(frozen=True)
class Cut:
    """The first elements: those with a smaller key, or the same key and a smaller index."""

    key: int
    index: int = 0

    def holds(self, values: Tensor, first: int) -> Tensor:
        """bool (n,), of values (n,) whose indices count from `first`."""
        if self.key >= _HIGH:
            return torch.ones_like(values, dtype=torch.bool)
        x, edge = values.numpy(), np.float32(value(self.key))
        mask = x < edge
        if self.index > first:
            same = np.flatnonzero(x == edge)
            mask[same[same < self.index - first]] = True
        return torch.from_numpy(mask)


Bins = tuple[np.ndarray, np.ndarray]  # uint32, int64: bins, how many elements each has
Choose = Callable[[Sequence[np.ndarray], np.ndarray], np.ndarray]


def chosen(parts: Sequence[np.ndarray], ranks: np.ndarray) -> np.ndarray:
    """Of all numbers, uint32, in rising order those (m,) that would stand at these ranks, int64, the first being 1."""
    return np.partition(np.concatenate(parts), ranks - 1)[ranks - 1]


class Tally:
    """How many elements come before a window, and how many are in each bin of it; adds up in place.

    same: the same by index, of the elements of a value that was guessed. sample: the elements are few, and kept as they
    are; choose: finds some of them by their ranks.
    """

    def __init__(
        self,
        below: int = 0,
        found: np.ndarray | None = None,
        same: Tally | None = None,
        packed: Bins | None = None,
        sample: bool = False,
        choose: Choose = chosen,
    ):
        self.below, self.same, self._sample, self._choose = below, same, sample, choose
        self._loose: list[np.ndarray] = []
        self._packed: list[Bins] = [] if packed is None else [packed]
        if found is not None and len(found) > _PACKED and not sample:  # many are in few bins, or few pieces are such
            self._packed.append(_counted(found))
        elif found is not None and len(found):
            self._loose.append(found)
        self._size = self._held()

    def __iadd__(self, other: Tally) -> Tally:
        self.below += other.below
        self._loose += other._loose
        self._packed += other._packed
        self._size += other._size
        if other._sample:
            self._sample, self._choose = True, other._choose
        elif self._size > _HELD:
            self.bins()
        if other.same is not None:
            self.same = other.same if self.same is None else self.same.__iadd__(other.same)
        return self

    def bins(self) -> Bins:
        """(bins in rising order, how many elements each has); bins without any are left out."""
        if self._loose:
            self._packed.append(_counted(np.concatenate(self._loose)))
        if len(self._packed) != 1:
            parts, self._packed = self._packed, []
            self._packed = [_merged(parts)]
        self._loose = []
        self._size = 0  # what is packed is bounded by the number of bins
        return self._packed[0]

    def sampled(self) -> int:
        """How many elements of a sample were seen."""
        return self.below + sum(map(len, self._loose))

    def at(self, ranks: Sequence[float]) -> list[int]:
        """The bins of a sample's elements of these ranks, or of the nearest; they count from 1 and are rounded up."""
        wanted = np.clip(np.subtract(ranks, self.below), 1, sum(map(len, self._loose)))
        return [int(b) for b in self._choose(self._loose, np.ceil(wanted).astype(np.int64))]

    def _held(self) -> int:
        return sum(map(len, self._loose)) + sum(len(bins) for bins, _ in self._packed)


def _counted(found: np.ndarray) -> Bins:
    if len(found) > _PACKED and found.max() < 2 * len(found):
        counts = torch.bincount(torch.from_numpy(found.view(np.int32))).numpy()
        bins = np.flatnonzero(counts)
        return bins.astype(np.uint32), counts[bins]
    return np.unique(found, return_counts=True)


def _merged(parts: list[Bins]) -> Bins:
    """The parts, which are given up, as one."""
    if not parts:
        return np.zeros(0, np.uint32), np.zeros(0, np.int64)
    most = max((int(bins.max()) for bins, _ in parts if len(bins)), default=-1) + 1
    if most <= min(_DENSE, 16 * sum(len(bins) for bins, _ in parts)):  # a third of the memory that sorting takes
        dense = np.zeros(most, np.int64)
        for bins, counts in parts:
            dense[bins] += counts  # a bin is in a part once
        bins = np.flatnonzero(dense)
        return bins.astype(np.uint32), dense[bins]
    bins, counts = (np.concatenate(column) for column in zip(*parts))
    parts.clear()
    order = np.argsort(bins, kind="stable")  # which merges parts that are in order
    bins = bins[order]
    counts = counts[order]
    del order
    starts = np.flatnonzero(np.diff(bins, prepend=bins[0] ^ np.uint32(1)))
    return bins[starts], np.add.reduceat(counts, starts)


@dataclass(frozen=True)
class Find:
    """The search for the first `rank` elements. Their last one's key, or, once that is known, its index among the equal
    ones (`rank` is then that of the index), lies in [low, high), or so it seems; a bin is 2**shift.

    exact: the key of the last of them is wanted, and no more. every: the next round sees one element in so many.
    guess: what its key may be; the indices of elements with that key are counted beside the keys.
    """

    rank: int
    exact: bool = False
    every: int = 1
    low: int = _LOW
    high: int = _HIGH
    shift: int = 0
    key: int | None = None
    guess: int | None = None
    cut: Cut | None = None

    @property
    def value(self) -> float:
        """What was found with `exact`."""
        assert self.key is not None
        return value(self.key)

    def ties(self, x: np.ndarray, first: int) -> Tally:
        """Of values x (n,) whose indices count from `first`: where those with the key of the last one lie."""
        return Tally(0, self._indices(np.flatnonzero(x == np.float32(value(self.key or 0))) + first))

    def largest(self, x: np.ndarray) -> Tally:
        """Of values x (n,), for a search of the very last one: the last of every piece says all."""
        return self.last(key(x.max(keepdims=True)), len(x))

    def last(self, top: np.ndarray, count: int) -> Tally:
        """Of `count` values, of which the last one has this key (1,)."""
        return Tally(count) if top[0] < self.low else Tally(count - 1, _bins(top, self), sample=self.every > 1)

    def single(self, x: np.ndarray) -> Tally:
        """Of values x (n,), for a window of one value."""
        mask, below = self.inside(x)
        return Tally(below, packed=(np.zeros(1, np.uint32), np.array([np.count_nonzero(mask)])))

    def inside(self, x: np.ndarray) -> tuple[np.ndarray, int]:
        """(whether an element lies in the window, how many come before it)."""
        if self.high == _HIGH and self.low > _LOW:
            inside = x >= np.float32(value(self.low))
            return inside, len(x) - int(np.count_nonzero(inside))
        upto = x <= np.float32(value(self.high - 1))
        if self.low == _LOW:
            return upto, 0
        less = x < np.float32(value(self.low))
        return np.not_equal(upto, less, out=upto), int(np.count_nonzero(less))

    def tally(self, below: int, found: np.ndarray, where: np.ndarray, first: int, numel: int) -> Tally:
        """Of values found (m,) in the window, which lie at `where` (m,)."""
        same = None
        if self.guess is not None:
            equal = where[found == np.float32(value(self.guess))] + first
            same = Tally(0, replace(self, **window(0, numel))._indices(equal))
        return Tally(below, _bins(key(found), self), same, sample=self.every > 1)

    def alike(self, other: Find) -> bool:
        """Whether both count the same, whatever their ranks."""
        return all(getattr(self, n) == getattr(other, n) for n in _COUNTED)

    def _indices(self, found: np.ndarray) -> np.ndarray:
        if len(found) and not self.low <= found[0] <= found[-1] < self.high:
            found = found[(found >= self.low) & (found < self.high)]
        return _bins(found, self)

    def idle(self, first: int, last: int) -> bool:
        """Whether there is nothing to count among the indices first .. last - 1."""
        return self.cut is not None or (self.key is not None and (last <= self.low or first >= self.high))

    def next(self, seen: Tally, numel: int, most: int) -> Find:
        """numel: how many elements there are; every index is below it. most: bins to hold, at most."""
        if self.cut is not None:
            return self
        if self.every > 1:
            return self._window(seen, numel, most)
        bins, counts = seen.bins()
        total = counts.cumsum() + seen.below
        if self.rank <= seen.below:
            return self._within(_LOW, self.low)
        if not len(total) or self.rank > total[-1]:
            return self._within(self.high, _HIGH) if self.high < _HIGH else self._done(Cut(_HIGH))
        i = int(np.searchsorted(total, self.rank))
        first = self.low + (int(bins[i]) << self.shift)
        rest, whole = self.rank - int(total[i] - counts[i]), self.rank == total[i]
        if self.key is not None:
            if whole:
                return self._done(Cut(self.key, first + (1 << self.shift)))
            return replace(self, rank=rest, **window(first, first + (1 << self.shift)))
        if self.shift and (self.exact or not whole):
            return self._within(first, first + (1 << self.shift))
        if whole or self.exact:
            return replace(self, key=first)._done(Cut(first + (1 << self.shift)))
        by_index = replace(self, rank=rest, key=first, **window(0, numel))
        return by_index.next(seen.same, numel, most) if seen.same is not None and first == self.guess else by_index

    def _window(self, seen: Tally, numel: int, most: int) -> Find:
        """Where the cut lies, by a sample's values."""
        n = seen.sampled()
        if not n:
            return replace(self, every=1, **window(_LOW, _HIGH))
        share = self.rank / numel
        spread = _SPREAD * (math.sqrt(share * (1 - share) * n) + 1)
        left, middle, right = seen.at([share * n - spread, min(share * n, n), share * n + spread])
        low = self.low + left if share * n >= _SPREAD else _LOW  # few may come before all of the sample
        high = self.low + right + 1 if share * n + spread < n else _HIGH
        many = (2 * spread + 1) / n * numel > most  # few elements have few bins, however wide the window
        guess = None if self.exact else self.low + middle
        return replace(self, every=1, guess=guess, **window(low, high, most) if many else {"low": low, "high": high})

    def _within(self, low: int, high: int) -> Find:
        return replace(self, **window(low, high))

    def _done(self, cut: Cut) -> Find:
        return Find(0, key=self.key, cut=cut)


_COUNTED = [f.name for f in fields(Find) if f.name != "rank"]


def window(low: int, high: int, bins: int = 1 << _BITS) -> dict[str, Any]:
    """A window of keys or places, and how wide its bins are."""
    return {"low": low, "high": high, "shift": max(0, (high - low - 1).bit_length() - bins.bit_length() + 1)}


def _bins(found: np.ndarray, window: Find) -> np.ndarray:
    return ((found - window.low) >> window.shift).astype(np.uint32)


class Counts:
    """Tallies (models, cuts), which add up; (models, 1) where all cuts of a model look for the same."""

    def __init__(self, rows: list[list[Tally]]):
        self.rows = rows

    def __iadd__(self, other: Counts) -> Counts:
        for mine, theirs in zip(self.rows, other.rows, strict=True):
            for i, t in enumerate(theirs):
                mine[i] += t
        return self


Finds = tuple[tuple[Find, ...], ...]  # models x cuts


def start(ranks: Sequence[Sequence[int]], numel: int, exact: bool = False, sampled: bool = False) -> Finds:
    """Cuts after `ranks` of `numel` elements. sampled: the first round may see one element in every(...) only."""
    every = max(4 * len(ranks), numel * len(ranks) // _SAMPLE) if sampled else 1
    if numel // every < _FEW:  # they would say little
        every = 1

    def find(rank: int) -> Find:
        if not exact and not 0 < rank < numel:
            return Find(0, cut=Cut(_LOW if rank <= 0 else _HIGH))
        first = Find(rank, exact, every)
        return first if every > 1 else replace(first, **window(_LOW, _HIGH))

    return tuple(tuple(map(find, row)) for row in ranks)


def memory(numel: int, models: int, cuts: int) -> int:
    """Bytes that a search in `numel` elements holds at most, as long as a sample does not mislead it."""
    n = numel // every(start(((1,) * cuts,) * models, numel, sampled=True))
    window = 2 * (_SPREAD * (math.sqrt(n) / 2 + 1) + 1) / max(n, 1) * numel if n < numel else 1 << _BITS
    bins = min(numel, int(window), _BINS // (models * cuts))
    loose = max(models * min(n, _HELD), models * cuts * min(int(window), _HELD))  # the sample is one for all cuts
    return 16 * loose + models * cuts * 16 * bins


def every(finds: Finds) -> int:
    """One element in so many is enough for this round."""
    return max(f.every for row in finds for f in row)


def asked(finds: Finds) -> Sequence[Sequence[Find]]:
    """What is to be counted, of each model: once where all its searches look for the same."""
    shared = all(len(row) > 1 and all(f.alike(row[0]) for f in row[1:]) for row in finds)
    return [row[:1] for row in finds] if shared else finds


def count(finds: Finds, values: Tensor, first: int, numel: int) -> Counts:
    """Of values (models, n) whose indices count from `first`; all of them are below numel."""
    rows = asked(finds)
    return Counts([_tallies(row, x, first, numel) for row, x in zip(rows, values.numpy(), strict=True)])


def _tallies(row: Sequence[Find], x: np.ndarray, first: int, numel: int) -> list[Tally]:
    """What lies in the windows is taken out of x once for all of them."""
    out = [Tally()] * len(row)
    windows: dict[int, tuple[np.ndarray, int]] = {}
    for i, f in enumerate(row):
        if f.cut is not None or not len(x):
            continue
        if f.key is not None:
            out[i] = f.ties(x, first)
        elif f.exact and f.rank == numel:
            out[i] = f.largest(x)
        elif f.high - f.low == 1 and f.guess is None:
            out[i] = f.single(x)
        else:
            windows[i] = f.inside(x)
    if not windows:
        return out
    where = np.flatnonzero(reduce(np.logical_or, [mask for mask, _ in windows.values()]))
    found = x[where]
    for i, (mask, below) in windows.items():
        mine = mask[where] if len(windows) > 1 else slice(None)
        out[i] = row[i].tally(below, found[mine], where[mine], first, numel)
    return out


def idle(finds: Finds, first: int, last: int) -> bool:
    """Whether this round has nothing to count among the indices first .. last - 1."""
    return all(f.idle(first, last) for row in finds for f in row)


def step(finds: Finds, counts: Counts, numel: int) -> tuple[Finds, bool]:
    """The next round's searches, and whether there is none to do."""
    most = _BINS // sum(map(len, finds))
    out = tuple(
        tuple(f.next(t, numel, most) for f, t in zip(row, tallies * len(row) if len(tallies) < len(row) else tallies))
        for row, tallies in zip(finds, counts.rows, strict=True)
    )
    return out, all(f.cut is not None for row in out for f in row)


def held(finds: Finds, values: Tensor, first: int, which: int = 0) -> Tensor:
    """bool (models, n): the first elements of every model's own order."""
    return torch.stack([row[which].cut.holds(x, first) for row, x in zip(finds, values, strict=True)])  # type: ignore[union-attr]
