"""PCB: the scores of the task vectors' entries, and the merge."""

from __future__ import annotations

from numba import types

from .numbers import BLOCK, at, bits, f32, fma, i32, i64, inline, load, mark, number, store, u32

# of a model, in float32: the quantiles of its magnitudes, what scales them; the lower one of its scores, their scale,
# and that times its weight
LOW, HIGH, SCALE, FLOOR, SHARE, WEIGHT, MODEL = range(7)
# what a call is told, in whole numbers, addresses among them
FROM, TO, COUNT, MODELS, KINDS, INPUTS, KIND, OUT, SUMS, STRIDE, NUMBERS, SCORES, POWERS, LOWS, SCRATCH = range(15)
# behind the models' numbers: sqrt(T log2 e), what their powers are less, the scale of the result
TIMES, LESS, ADDED = range(3)
SMALL = 0x39800000  # 2 ** -12: what is smaller is its own tanh in float32


@inline
def task_vectors(models, kinds, inputs, first, n, block):
    """Loads a block of each model less the base, which comes behind them; returns whether a number is not finite."""
    root = at(block + 4 * BLOCK * models, types.float32)
    bad = load(kinds[models], inputs[models], first, n, root)
    for t in range(models):
        x = at(block + 4 * BLOCK * t, types.float32)
        bad |= load(kinds[t], inputs[t], first, n, x)
        for i in range(n):
            x[i] = x[i] - root[i]
    return bad


@inline
def clamp(x, low, high):
    x = x if x > low else low
    return x if x < high else high


@inline
def power(x):
    """2 ** x as torch's vectors have it (Sleef's exp2f, 1.0 ULP); 0 below 2 ** -150."""
    whole = (x + f32(12582912.0)) - f32(12582912.0)  # to the nearest, ties to even
    rest = x - whole
    u = fma(f32(0.1535920892e-3), rest, f32(0.1339262701e-2))
    u = fma(u, rest, f32(0.9618384764e-2))
    u = fma(u, rest, f32(0.5550347269e-1))
    u = fma(u, rest, f32(0.2402264476))
    u = fma(u, rest, f32(0.6931471825))
    u = fma(u, rest, f32(1))
    q = i32(whole if whole > f32(-150) else f32(-150))
    half = i32(q >> 1)
    u = u * number(u32((half + 127) << 23)) * number(u32((q - half + 127) << 23))
    return u if x >= f32(-150) else f32(0)


@inline
def factors(models, n, own, lows, block, t, inter, powers):
    """Of a block of task vectors, and behind base and models their sum: a model's tau sum_j tau_j, which may take its
    place, and T N(|tau|)^2 / ln 2."""
    x, total = at(block + 4 * BLOCK * t, types.float32), at(block + 4 * BLOCK * (models + 1), types.float32)
    times, less = own[MODEL * models + TIMES], own[MODEL * models + LESS]
    low, scale = own[MODEL * t + LOW], own[MODEL * t + SCALE]
    if lows:
        for i in range(n):
            size = number(bits(x[i]) & u32(0x7FFFFFFF))
            norm = clamp((size - low) * scale, f32(0), times)
            powers[i] = norm * norm - less
    else:
        for i in range(n):
            norm = clamp(x[i] * scale, -times, times)
            powers[i] = norm * norm - less
    for i in range(n):
        inter[i] = x[i] * total[i]


@inline
def add_up(models, n, block):
    """The sum of a block's task vectors, behind base and models."""
    total, x = at(block + 4 * BLOCK * (models + 1), types.float32), at(block, types.float32)
    for i in range(n):
        total[i] = x[i]
    for t in range(1, models):
        x = at(block + 4 * BLOCK * t, types.float32)
        for i in range(n):
            total[i] = total[i] + x[i]


@inline
def balance(models, n, own, lows, block, out):
    """The scores of a block of task vectors, a block each from `out` on. Returns whether a first factor is so large
    that its tanh is another number (uint32)."""
    add_up(models, n, block)
    powers, large = at(block + 4 * BLOCK * (models + 2), types.float32), u32(0)
    for t in range(models):
        inter = at(out + 4 * BLOCK * t, types.float32)
        factors(models, n, own, lows, block, t, inter, powers)
        for i in range(n):
            large |= u32((bits(inter[i]) & u32(0x7FFFFFFF)) >= u32(SMALL))
            inter[i] = inter[i] * power(powers[i])
    return large


def score(head):
    """Numbers FROM .. TO of scores (models, COUNT) by `balance`; or, if there is room for POWERS (models, TO - FROM),
    their factors, the second of which as exponents of 2.

    Returns 1 where an input is no finite number, plus 2 where one of the first factors is too large for `balance`.
    """
    models, count, start, end, block = head[MODELS], head[COUNT], head[FROM], head[TO], head[SCRATCH]
    kinds, inputs = at(head[KINDS], types.int64), at(head[INPUTS], types.int64)
    own, made = at(head[NUMBERS], types.float32), block + 4 * BLOCK * (models + 3)
    bad, large = u32(0), u32(0)
    for first in range(start, end, BLOCK):
        n = min(BLOCK, end - first)
        bad |= task_vectors(models, kinds, inputs, first, n, block)
        if head[POWERS]:
            add_up(models, n, block)
        else:
            large |= balance(models, n, own, head[LOWS], block, made)
        for t in range(models):
            out = at(head[SCORES] + 4 * (t * count + first), types.float32)
            if head[POWERS]:
                powers = at(head[POWERS] + 4 * (t * (end - start) + first - start), types.float32)
                factors(models, n, own, head[LOWS], block, t, out, powers)
            else:
                found = at(made + 4 * BLOCK * t, types.float32)
                for i in range(n):
                    out[i] = found[i]
    return i64(bad) + 2 * i64(large)


def compete(head):
    """One piece of the result, of the SCORES, or of those that it makes. Returns as `merge` does, and 4 more where it
    cannot make them."""
    models, count, block = head[MODELS], head[COUNT], head[SCRATCH]
    kinds, inputs = at(head[KINDS], types.int64), at(head[INPUTS], types.int64)
    own = at(head[NUMBERS], types.float32)
    added = own[MODEL * models + ADDED]
    root = at(block + 4 * BLOCK * models, types.float32)
    total = at(block + 4 * BLOCK * (models + 1), types.float32)
    merged = at(block + 4 * BLOCK * (models + 2), types.float32)
    made, bad, wide, large = block + 4 * BLOCK * (models + 3), u32(0), u32(0), u32(0)
    for first in range(0, count, BLOCK):
        n = min(BLOCK, count - first)
        bad |= task_vectors(models, kinds, inputs, first, n, block)
        if not head[SCORES]:
            large |= balance(models, n, own, head[LOWS], block, made)
        for t in range(models):
            x = at(block + 4 * BLOCK * t, types.float32)
            given = head[SCORES] + 4 * (t * count + first)
            beta = at(given if head[SCORES] else made + 4 * BLOCK * t, types.float32)
            low, high = own[MODEL * t + LOW], own[MODEL * t + HIGH]
            floor, share, weight = own[MODEL * t + FLOOR], own[MODEL * t + SHARE], own[MODEL * t + WEIGHT]
            for i in range(n):
                b = beta[i] - floor
                b = b if b > f32(0) else f32(0)
                held = clamp(x[i], -high, high)
                if low > f32(0):
                    size = number(bits(held) & u32(0x7FFFFFFF))
                    held = (size if size > low else low) * (f32(held > f32(0)) - f32(held < f32(0)))
                held = held * b
                if t == 0:
                    total[i], merged[i] = b * share, held * weight
                else:
                    total[i], merged[i] = fma(b, share, total[i]), fma(held, weight, merged[i])
        for i in range(n):
            least = total[i] if total[i] > f32(1e-12) else f32(1e-12)
            merged[i] = fma(merged[i] / least, added, root[i])
        wide |= store(head[KIND], merged, n, head[OUT], first)
        if head[SUMS]:
            for j in range(models + 1):
                mark(kinds[j], inputs[j], first, n, head[SUMS] + 8 * head[STRIDE] * j)
            mark(head[KIND], head[OUT], first, n, head[SUMS] + 8 * head[STRIDE] * (models + 1))
    return i64(bad) + 2 * i64(wide) + 4 * i64(large)
