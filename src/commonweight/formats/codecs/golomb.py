"""Gaps between places, as bits: Golomb's code with a power of two."""

from __future__ import annotations

import numpy as np


def coded(gaps: np.ndarray) -> tuple[int, np.ndarray, np.ndarray]:
    """(b, unary bits of the gaps >> b, the gaps' low b bits) with the b that takes the fewest bits. gaps: >= 0."""
    cost = [int((gaps >> b).sum()) + len(gaps) * (1 + b) for b in range(int(gaps.max(initial=0)).bit_length() + 1)]
    b = cost.index(min(cost))
    high = np.zeros(int((gaps >> b).sum()) + len(gaps), bool)
    high[np.cumsum((gaps >> b) + 1) - 1] = True
    return b, high, (gaps[:, None] >> np.arange(b) & 1).astype(bool).flatten()


def decoded(body: np.ndarray, b: int, k: int) -> np.ndarray | None:
    """The k gaps from bytes, the low parts and then the unary ones; None for bytes that nobody wrote so."""
    lows = -(-k * b // 8)
    if b > 40 or len(body) < lows:
        return None
    low = np.unpackbits(body[:lows], bitorder="little")[: k * b].reshape(k, b)
    ones = np.flatnonzero(np.unpackbits(body[lows:], bitorder="little"))
    needed = -(-(int(ones[-1]) + 1) // 8) if len(ones) else 0
    if len(ones) != k or len(body) != lows + needed:
        return None
    return ((np.diff(ones, prepend=-1) - 1) << b) + (low.astype(np.int64) << np.arange(b)).sum(1)
