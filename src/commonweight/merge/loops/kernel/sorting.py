"""Numbers sorted by counting, a digit at a time: how often each is there, and which have some ranks."""

from __future__ import annotations

from numba import types

from .numbers import at, i64, inline, u32

DIGITS = 2048  # of 11 bits, three of which are a number's
# what a call is told, in whole numbers, addresses among them: uint32 (n,), and room for as many
COUNT, NUMBERS, SPARE, TIMES, PLACES = range(5)
# of `choose`: of PARTS, where each is and how long; RANKS (int64, of ASKED) count from 1; ROOM for what it finds
PARTS, GIVEN, ASKED, RANKS, FOUND, ROOM = range(6)
MET = 1 << 40  # less is a rank that was found among the upper bits


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


def choose(head):
    """The numbers of some ranks go to FOUND (uint32). Those that have the upper 16 bits of one of these are sorted."""
    asked, parts, ranks = head[ASKED], at(head[GIVEN], types.int64), at(head[RANKS], types.int64)
    tops, counts, out = at(head[ROOM], types.int32), at(head[ROOM] + (4 << 16), types.int64), head[FOUND]
    for d in range(1 << 16):
        tops[d] = 0
    for p in range(head[PARTS]):
        numbers = at(parts[2 * p], types.uint32)
        for i in range(parts[2 * p + 1]):
            tops[i64(numbers[i] >> u32(16))] += 1
    total, left = i64(0), i64(0)  # how many come before a digit, and of those how many are sorted
    for d in range(1 << 16):
        size, wanted = i64(tops[d]), i64(0)
        if size:
            for j in range(asked):
                if total < ranks[j] <= total + size:
                    wanted = i64(1)
                    ranks[j] += left - total - MET
            tops[d] = wanted
            total += size
            left += size * wanted
    here = head[ROOM] + (4 << 16) + 8 * DIGITS
    there = here + 4 * (left + 1)
    found, kept = i64(0), at(here, types.uint32)
    for p in range(head[PARTS]):
        numbers = at(parts[2 * p], types.uint32)
        for i in range(parts[2 * p + 1]):
            kept[found] = numbers[i]  # the next one takes its place, if it is not wanted
            found += i64(tops[i64(numbers[i] >> u32(16))])
    for shift in range(0, 33, 11):
        if not by_digit(at(here, types.uint32), found, shift, counts, at(there, types.uint32)):
            here, there = there, here
    kept, chosen = at(here, types.uint32), at(out, types.uint32)
    for j in range(asked):
        chosen[j] = kept[ranks[j] + MET - 1]
    return i64(0)
