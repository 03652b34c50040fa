"""How sure one can be of an accuracy."""

from __future__ import annotations

import math
from collections.abc import Sequence

Z = 1.959964  # of 95 in 100


def interval(right: int, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share, `right` of `n`. Raises: ValueError unless 0 <= right <= n and n > 0.

    Source: Wilson, Probable inference, the law of succession, and statistical inference, JASA 1927.
    """
    if n <= 0 or not 0 <= right <= n:
        raise ValueError(f"{right} of {n} rows; wanted at least one row, and no more right ones than rows")
    p, z2 = right / n, Z * Z
    middle = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = Z / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)


def spread(shares: Sequence[tuple[float, int]]) -> float:
    """Half the width of the 95 % interval of a mean of independent shares, each (share, rows); normal approximation.

    It says what other test rows of the same tasks would do, not what other tasks or other seeds would.
    """
    return Z * math.sqrt(sum(p * (1 - p) / n for p, n in shares)) / len(shares)
