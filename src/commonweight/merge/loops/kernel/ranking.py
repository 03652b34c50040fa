"""The ranks of magnitudes within rows, by counting their bits: equal ones by place."""

from __future__ import annotations

from numba import types

from .numbers import BLOCK, at, bits, f32, i64, inline, load, u32, u64

DIGITS = 2048  # of 11 bits, three of which are a magnitude's
# what a call is told, in whole numbers, addresses among them
ROWS, WIDTH, MODELS, KINDS, INPUTS, RISING, RANKS, SPARE, SCRATCH, HEAD = range(10)


@inline
def places(counts):
    """How often each digit is there becomes the place of the first that has it."""
    total = i64(0)
    for d in range(DIGITS):
        here = counts[d]
        counts[d] = total
        total += here


@inline
def row(keys, n, one, other, counts, ranks):
    """ranks (n,) of keys (n,), from the smallest on. one, other: room for n words; counts: for three of DIGITS."""
    second, third = at(counts + 8 * DIGITS, types.int64), at(counts + 16 * DIGITS, types.int64)
    first = at(counts, types.int64)
    for d in range(3 * DIGITS):
        first[d] = 0
    for i in range(n):
        k = i64(keys[i])
        first[k & 2047] += 1
        second[(k >> 11) & 2047] += 1
        third[k >> 22] += 1
    places(first)
    places(second)
    places(third)
    for i in range(n):
        d = i64(keys[i]) & 2047
        one[first[d]] = (u64(keys[i]) << u64(32)) | u64(i)
        first[d] += 1
    for i in range(n):
        d = i64(one[i] >> u64(43)) & 2047
        other[second[d]] = one[i]
        second[d] += 1
    for i in range(n):
        d = i64(other[i] >> u64(54))
        ranks[i64(other[i] & u64(0xFFFFFFFF))] = f32(third[d])
        third[d] += 1


def rank(head):
    """float32 ranks (models, rows, width) of |tau|, of a piece of whole rows; the largest first, or the smallest."""
    models, width, count = head[MODELS], head[WIDTH], head[ROWS] * head[WIDTH]
    kinds, inputs = at(head[KINDS], types.int64), at(head[INPUTS], types.int64)
    x, root = at(head[SCRATCH], types.float32), at(head[SCRATCH] + 4 * BLOCK, types.float32)
    keys, counts = head[SPARE], head[SCRATCH] + 8 * BLOCK
    turn = u32(0) if head[RISING] else u32(0x7FFFFFFF)
    bad = u32(0)
    for t in range(models):
        for r in range(head[ROWS]):
            for first in range(0, width, BLOCK):
                n, start = min(BLOCK, width - first), r * width + first
                bad |= load(kinds[t], inputs[t], start, n, x)
                bad |= load(kinds[models], inputs[models], start, n, root)
                out = at(keys + 4 * first, types.uint32)
                for i in range(n):
                    out[i] = (bits(x[i] - root[i]) & u32(0x7FFFFFFF)) ^ turn
            one = keys + 8 * ((width + 1) // 2)
            ranks = at(head[RANKS] + 4 * (t * count + r * width), types.float32)
            row(at(keys, types.uint32), width, at(one, types.uint64), at(one + 8 * width, types.uint64), counts, ranks)
    return i64(bad)
