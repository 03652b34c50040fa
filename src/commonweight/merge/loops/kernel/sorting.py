"""How often each number is there: sorted by counting, a digit at a time."""

from __future__ import annotations

from numba import types

from .numbers import at, i64, inline, u32

DIGITS = 2048  # of 11 bits, three of which are a number's
# what a call is told, in whole numbers, addresses among them: uint32 (n,), and room for as many
COUNT, NUMBERS, SPARE, TIMES, PLACES = range(5)


@inline
def by_digit(numbers, n, shift, counts, out):
    """In the order of a digit; returns whether all have the same, and then nothing is done."""
    for d in range(DIGITS):
        counts[d] = i64(0)
    for i in range(n):
        counts[i64((numbers[i] >> u32(shift)) & u32(DIGITS - 1))] += 1
    if counts[i64((numbers[0] >> u32(shift)) & u32(DIGITS - 1))] == n:
        return True
    total = i64(0)
    for d in range(DIGITS):
        here = counts[d]
        counts[d] = total
        total += here
    for i in range(n):
        d = i64((numbers[i] >> u32(shift)) & u32(DIGITS - 1))
        out[counts[d]] = numbers[i]
        counts[d] += 1
    return False


def runs(head):
    """Each number once, in rising order, in the room of NUMBERS, and in TIMES how often it was there (int64); returns
    how many there are. n is at least 1."""
    n, here, there = head[COUNT], head[NUMBERS], head[SPARE]
    counts = at(head[PLACES], types.int64)
    for shift in range(0, 33, 11):
        if not by_digit(at(here, types.uint32), n, shift, counts, at(there, types.uint32)):
            here, there = there, here
    numbers, out, times = at(here, types.uint32), at(head[NUMBERS], types.uint32), at(head[TIMES], types.int64)
    found, last, began = i64(0), numbers[0], i64(0)
    for i in range(n):
        if numbers[i] != last:
            out[found] = last
            times[found] = i - began
            last, began = numbers[i], i
            found += 1
    out[found] = last
    times[found] = n - began
    return found + 1
