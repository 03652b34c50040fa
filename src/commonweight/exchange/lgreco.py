"""L-GreCo: a codec for each pool, of the fewest bytes whose errors together stay within a budget."""

from __future__ import annotations

import math
from collections.abc import Sequence

BINS = 2000


def choose(sizes: Sequence[Sequence[int]], errors: Sequence[Sequence[float]], most: float) -> list[int] | None:
    """The option c_l of each pool l that minimises sum of sizes[l][c_l] with sum of errors[l][c_l] <= most; None where
    no choice keeps it.

    Exact but for the grid: errors are rounded up to `BINS` parts of the budget, so that it is kept. Cost: O(pools
    options BINS). Source: L-GreCo, arXiv 2210.17357, algorithm 1: errors are squared, and dynamic programming goes over
    the layers. Differs: bytes are those that the codec really writes.
    """
    unit = most / BINS if most > 0 else 1.0
    best: list[tuple[int, tuple[int, ...]] | None] = [None] * (BINS + 1)
    best[0] = (0, ())
    for size, error in zip(sizes, errors, strict=True):
        cost = [_bins(e, unit) for e in error]
        new: list[tuple[int, tuple[int, ...]] | None] = [None] * (BINS + 1)
        for used, found in enumerate(best):
            if found is None:
                continue
            for c, (b, e) in enumerate(zip(size, cost)):
                at = used + e
                if at <= BINS and (new[at] is None or found[0] + b < new[at][0]):  # type: ignore[index]
                    new[at] = (found[0] + b, (*found[1], c))
        best = _front(new)
    every = [found for found in best if found is not None]
    return list(min(every)[1]) if every else None


def _bins(error: float, unit: float) -> int:
    return min(BINS + 1, math.ceil(error / unit - 1e-9))


def _front(found: list[tuple[int, tuple[int, ...]] | None]) -> list[tuple[int, tuple[int, ...]] | None]:
    """Without those that take more bytes than one of less error."""
    out: list[tuple[int, tuple[int, ...]] | None] = []
    least = None
    for one in found:
        better = one is not None and (least is None or one[0] < least)
        out.append(one if better else None)
        least = one[0] if better and one is not None else least
    return out
