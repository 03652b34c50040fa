"""Squares of the task vectors and sizes of their sums, for sums that are taken elsewhere."""

from __future__ import annotations

from numba import types

from .competing import task_vectors
from .numbers import BLOCK, at, bits, fma, i64, load, number, u32

# what a call is told, in whole numbers, addresses among them
COUNT, MODELS, KINDS, INPUTS, OUT, SCRATCH = range(6)
ROWS, WEIGHTS = 6, 7  # of `size`: rows of float32 (models,)


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


def size(head):
    """float32 (ROWS, n): |sum_t w_t tau_t|, as `combine` adds; returns 1 where an input is no finite number."""
    models, count, block = head[MODELS], head[COUNT], head[SCRATCH]
    kinds, inputs = at(head[KINDS], types.int64), at(head[INPUTS], types.int64)
    bad = u32(0)
    for first in range(0, count, BLOCK):
        n = min(BLOCK, count - first)
        bad |= task_vectors(models, kinds, inputs, first, n, block)
        for r in range(head[ROWS]):
            out = at(head[OUT] + 4 * (r * count + first), types.float32)
            weights = at(head[WEIGHTS] + 4 * r * models, types.float32)
            for t in range(models):
                x = at(block + 4 * BLOCK * t, types.float32)
                if t == 0:
                    for i in range(n):
                        out[i] = x[i] * weights[0]
                else:
                    for i in range(n):
                        out[i] = fma(x[i], weights[t], out[i])
            for i in range(n):
                out[i] = number(bits(out[i]) & u32(0x7FFFFFFF))
    return i64(bad)
