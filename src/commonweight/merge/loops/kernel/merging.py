"""A piece of the result: task vectors, what is left of them, their combination, and the rounded numbers."""

from __future__ import annotations

from numba import types

from .dropping import CHANCES, DROPS, drop
from .numbers import BLOCK, at, bits, f32, fma, i32, i64, inline, load, mark, number, store, u32

WHOLE, TRIM, MIDDLE, DROP = range(4)  # what is left of the task vectors
AVERAGE, ONTO, ELECT = range(3)  # how they are combined
CUT = 3  # numbers that a cut has
# what a call is told, in whole numbers, addresses among them
COUNT, START, MODELS, BASE, KINDS, INPUTS, KIND, OUT, SUMS, STRIDE = range(10)
LEFT, CUTS, DROPPING, CHANCE, HOW, FACTORS, DIVIDE, FUSED, SCRATCH, HEAD = range(10, 20)


@inline
def behind(b, i, edge, limit, zero):
    """A number's bits; of one that goes its zero's: not larger than `edge`, or as large and from place `limit` on."""
    size = i32(b & u32(0x7FFFFFFF))
    return b if size > edge or (size == edge and i < limit) else b & zero


@inline
def trim(x, n, first, cut):
    """x with zeros behind a cut: (the largest magnitude that goes, as bits, or -1; before what place of the piece it
    stays; which of the bits are left where it goes)."""
    edge, limit, zero = i32(cut[0]), i32(cut[1] - first), u32(cut[2])
    for i in range(n):
        x[i] = number(behind(bits(x[i]), i32(i), edge, limit, zero))


@inline
def middle(x, n, first, outer, inner):
    """x with zeros behind the inner cut and before the outer one."""
    edge, limit, zero = i32(outer[0]), i32(outer[1] - first), u32(outer[2])
    edge2, limit2, zero2 = i32(inner[0]), i32(inner[1] - first), u32(inner[2])
    for i in range(n):
        b = bits(x[i])
        x[i] = number(behind(b, i32(i), edge2, limit2, zero2)) - number(behind(b, i32(i), edge, limit, zero))


@inline
def scale(x, n, factor, out):
    for i in range(n):
        out[i] = x[i] * factor


@inline
def add(x, n, factor, out):
    for i in range(n):
        out[i] = fma(x[i], factor, out[i])


@inline
def signs(x, n, zero):
    """In x's place, its signs: 0 where it is 0, or `zero`."""
    if zero == f32(0):
        for i in range(n):
            x[i] = f32(x[i] > f32(0)) - f32(x[i] < f32(0))
    else:
        for i in range(n):
            sign = x[i] * zero + f32(0)  # adding makes no zero negative
            x[i] = number((bits(sign) & u32(0x80000000)) | u32(0x3F800000)) * zero


@inline
def agreeing(x, n, sign, own, weight, share, merged, parts):
    """Adds what of x has the sign to `merged`, with its weight, and its share to `parts`."""
    for i in range(n):
        part = x[i] * sign[i] * own
        part = part if part > f32(0) else f32(0)
        merged[i] = fma(part, weight, merged[i])
        parts[i] = fma(f32(part > f32(0)), share, parts[i])


@inline
def elect(tau, n, models, zero, divide, factors, sign, merged, parts):
    """The disjoint merge. factors: of each model, four: in the sum whose sign is elected; its own sign; its weight; its
    share in what is divided by."""
    for t in range(models):
        x = at(tau + 4 * BLOCK * t, types.float32)
        if t == 0:
            scale(x, n, factors[0], sign)
        else:
            add(x, n, factors[4 * t], sign)
    signs(sign, n, zero)
    for i in range(n):
        merged[i], parts[i] = f32(0), f32(0)
    for t in range(models):
        f = 4 * t
        if factors[f + 1] != f32(0):
            x = at(tau + 4 * BLOCK * t, types.float32)
            agreeing(x, n, sign, factors[f + 1], factors[f + 2], factors[f + 3], merged, parts)
    if divide:
        for i in range(n):
            merged[i] = merged[i] * sign[i] / (parts[i] + f32(parts[i] == f32(0)))
    else:
        for i in range(n):
            merged[i] = merged[i] * sign[i]


def merge(head):
    """One piece. Returns 1 where an input is no finite number, 2 where a result does not fit, 3 where both."""
    models, base, tau = head[MODELS], head[BASE], head[SCRATCH]
    kinds, inputs = at(head[KINDS], types.int64), at(head[INPUTS], types.int64)
    factors = at(head[FACTORS], types.float32)
    step = 4 * BLOCK
    root = at(tau + step * models, types.float32)
    out = at(tau + step * (models + 1), types.float32)
    sign = at(tau + step * (models + 2), types.float32)
    parts = at(tau + step * (models + 3), types.float32)
    bad, wide = u32(0), u32(0)
    for first in range(0, head[COUNT], BLOCK):
        n = min(BLOCK, head[COUNT] - first)
        if base:
            bad |= load(kinds[models], inputs[models], first, n, root)
        for t in range(models):
            x = at(tau + step * t, types.float32)
            bad |= load(kinds[t], inputs[t], first, n, x)
            if base:
                for i in range(n):
                    x[i] = x[i] - root[i]
            cut = head[CUTS] + 8 * CUT * t
            if head[LEFT] == TRIM:
                trim(x, n, first, at(cut, types.int64))
            elif head[LEFT] == MIDDLE:
                middle(x, n, first, at(cut, types.int64), at(cut + 8 * CUT * models, types.int64))
            elif head[LEFT] == DROP:
                model = at(head[DROPPING] + 8 * DROPS * t, types.int64)
                chance = at(head[CHANCE] + 4 * CHANCES * t, types.float32)
                drop(x, n, head[START] + first, first, model, chance, tau + step * (models + 4))
        if head[HOW] == ELECT:
            elect(tau, n, models, factors[4 * models], head[DIVIDE], factors, sign, out, parts)
            if head[FUSED]:
                for i in range(n):
                    out[i] = fma(out[i], factors[4 * models + 1], root[i])
            else:
                for i in range(n):
                    out[i] = root[i] + factors[4 * models + 1] * out[i]
        else:
            for t in range(models):
                x = at(tau + step * t, types.float32)
                if t == 0 and head[HOW] == AVERAGE:
                    scale(x, n, factors[0], out)
                elif t == 0:
                    for i in range(n):
                        out[i] = fma(x[i], factors[0], root[i])
                else:
                    add(x, n, factors[t], out)
        wide |= store(head[KIND], out, n, head[OUT], first)
        if head[SUMS]:
            for j in range(models + base):
                mark(kinds[j], inputs[j], first, n, head[SUMS] + 8 * head[STRIDE] * j)
            mark(head[KIND], head[OUT], first, n, head[SUMS] + 8 * head[STRIDE] * (models + base))
    return i64(bad) + 2 * i64(wide)
