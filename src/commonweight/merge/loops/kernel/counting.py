"""A piece of a survey: how many values come before a window of their order, and what lies in it."""

from __future__ import annotations

from numba import types

from .competing import balance, task_vectors
from .numbers import BLOCK, at, before, bits, first_one, i32, i64, inline, load, ones, u32, u64

FALLING, SIZES, GIVEN, SCORES = range(4)  # values: -|tau|, |tau|, numbers that were made before, PCB's scores
PART = 64  # keys that are looked at together
# what a call is told, in whole numbers, addresses among them
COUNT, MODELS, BASE, KINDS, INPUTS, VALUES, WINDOWS, SEARCHES, SCRATCH, NUMBERS, LOWS = range(11)
# of a window: whose values, in which keys; bins are 2**shift wide, and go to `bins`; of values with the key `same` (if
# EQUAL), places from `first` on, in their window and bins, go to `places`; what is found: before, inside, in `places`,
# and if LARGEST nothing of these but the largest key
MODEL, LOW, HIGH, SHIFT, BINS, EQUAL, SAME, FIRST, FROM, TO, WIDTH, PLACES = range(12)
LARGEST, BELOW, INSIDE, FOUND, TOP, WINDOW = range(12, 18)


@inline
def order(x, n, values):
    """In x's place, as int32, the keys of its values: in their order, minus zero like zero."""
    out = at(x, types.int32)
    x = at(x, types.float32)
    for i in range(n):
        b = bits(x[i])
        if values == FALLING:
            b |= u32(0x80000000)
        elif values == SIZES:
            b &= u32(0x7FFFFFFF)
        size = b & u32(0x7FFFFFFF)
        out[i] = i32(0) if size == u32(0) else i32(b ^ u32(0x7FFFFFFF)) if b != size else i32(b)


@inline
def tally(address, n, place, w):
    """Adds a block of keys, which begins at `address`, to a window; `place` is the index of the first."""
    low, high, shift = i32(w[LOW]), i32(w[HIGH]), u32(w[SHIFT])
    bins, places = at(w[BINS], types.uint32), at(w[PLACES], types.uint32)
    same, first, last, width = i32(w[SAME]), w[FROM], w[TO], w[WIDTH]
    below, inside, found = w[BELOW], w[INSIDE], w[FOUND]
    keys, equal = at(address, types.int32), w[EQUAL]
    for i in range(n, (n + PART - 1) // PART * PART):
        keys[i] = i32(0x7FFFFFFF)  # behind every window
    for start in range(0, n, PART):
        part = at(address + 4 * start, types.int32)
        less = before(part, low)
        below += ones(less)
        left = before(part, high) & ~less
        while left:
            i = first_one(left)
            left &= left - u64(1)
            bins[inside] = u32(part[i] - low) >> shift
            inside += 1
            if equal and part[i] == same:
                index = place + start + i
                if first <= index < last:
                    places[found] = u32((index - first) >> width)
                    found += 1
    w[BELOW], w[INSIDE], w[FOUND] = below, inside, found


@inline
def largest(keys, n):
    top = keys[0]
    for i in range(n):
        top = max(top, keys[i])
    return i64(top)


def count(head):
    """One piece. Returns 1 where an input is no finite number, plus 2 where `balance` does not make the scores."""
    models, base, block = head[MODELS], head[BASE], head[SCRATCH]
    kinds, inputs = at(head[KINDS], types.int64), at(head[INPUTS], types.int64)
    own, bad, large = at(head[NUMBERS], types.float32), u32(0), u32(0)
    for first in range(0, head[COUNT], BLOCK):
        n = min(BLOCK, head[COUNT] - first)
        if base:
            bad |= task_vectors(models, kinds, inputs, first, n, block)
        else:
            for t in range(models):
                bad |= load(kinds[t], inputs[t], first, n, at(block + 4 * BLOCK * t, types.float32))
        if head[VALUES] == SCORES:
            large |= balance(models, n, own, head[LOWS], block, block)
        for t in range(models):
            order(block + 4 * BLOCK * t, n, head[VALUES])
        for j in range(head[SEARCHES]):
            w = at(head[WINDOWS] + 8 * WINDOW * j, types.int64)
            keys = block + 4 * BLOCK * w[MODEL]
            if w[LARGEST]:
                w[TOP] = max(w[TOP], largest(at(keys, types.int32), n))
            else:
                tally(keys, n, w[FIRST] + first, w)
    return i64(bad) + 2 * i64(large)
