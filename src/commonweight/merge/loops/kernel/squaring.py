"""The squares of the task vectors, for sums that are taken elsewhere."""

from __future__ import annotations

from numba import types

from .numbers import BLOCK, at, i64, load, u32

# what a call is told, in whole numbers, addresses among them
COUNT, MODELS, KINDS, INPUTS, OUT, SCRATCH, HEAD = range(7)


def square(head):
    """float32 (models, n); returns 1 where an input is no finite number."""
    models, count = head[MODELS], head[COUNT]
    kinds, inputs = at(head[KINDS], types.int64), at(head[INPUTS], types.int64)
    root = at(head[SCRATCH], types.float32)
    bad = u32(0)
    for first in range(0, count, BLOCK):
        n = min(BLOCK, count - first)
        bad |= load(kinds[models], inputs[models], first, n, root)
        for t in range(models):
            out = at(head[OUT] + 4 * (t * count + first), types.float32)
            bad |= load(kinds[t], inputs[t], first, n, out)
            for i in range(n):
                out[i] = (out[i] - root[i]) * (out[i] - root[i])
    return i64(bad)
