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


def student(df: int, share: float = 0.95) -> float:
    """t such that `share` of Student's distribution with `df` degrees of freedom lies between -t and t.

    Source: Abramowitz and Stegun, 26.7.3 and 26.7.4, solved by halving. Raises: ValueError unless df >= 1.
    """
    if df < 1 or not 0 < share < 1:
        raise ValueError(f"df={df}, share={share}: wanted df >= 1 and a share between 0 and 1")

    def inside(t: float) -> float:
        angle = math.atan(t / math.sqrt(df))
        cos2, term, total = math.cos(angle) ** 2, 1.0, 0.0
        if df % 2 == 0:
            for k in range(1, df // 2 + 1):
                total += term
                term *= (2 * k - 1) / (2 * k) * cos2
            return math.sin(angle) * total
        term = math.cos(angle)
        for k in range(1, (df - 1) // 2 + 1):
            total += term
            term *= 2 * k / (2 * k + 1) * cos2
        return 2 / math.pi * (angle + math.sin(angle) * total)

    low, high = 0.0, 1.0
    while inside(high) < share:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if inside(middle) < share else (low, middle)
    return high


def mean_interval(values: Sequence[float]) -> tuple[float, float | None]:
    """(mean, half the width of its 95 % interval) by Student's t; None for a single value, which tells no spread.

    For paired measurements, give their differences.
    """
    n, mean = len(values), sum(values) / len(values)
    if n < 2:
        return mean, None
    variance = sum((v - mean) ** 2 for v in values) / (n - 1)
    return mean, student(n - 1) * math.sqrt(variance / n)
