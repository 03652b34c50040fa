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
def task_vectors(head, first, n):
    """Loads a block; returns whether a number is not finite."""
    models, block = head[MODELS], head[SCRATCH]
    kinds, inputs = at(head[KINDS], types.int64), at(head[INPUTS], types.int64)
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


def score(head):
    """Numbers FROM .. TO of scores (models, COUNT): tau sum_j tau_j, times 2 ** (T N(|tau|)^2 / ln 2) if there are no
    POWERS, else these exponents (models, TO - FROM) are put there.

    Returns 1 where an input is no finite number, plus 2 where one of the first factors is so large that its tanh is
    another number.
    """
    models, count, start, end = head[MODELS], head[COUNT], head[FROM], head[TO]
    own = at(head[NUMBERS], types.float32)
    all_models = at(head[NUMBERS] + 4 * MODEL * models, types.float32)
    times, less = all_models[TIMES], all_models[LESS]
    total = at(head[SCRATCH] + 4 * BLOCK * (models + 1), types.float32)
    spare = head[SCRATCH] + 4 * BLOCK * (models + 2)
    bad, large = u32(0), u32(0)
    for first in range(start, end, BLOCK):
        n = min(BLOCK, end - first)
        bad |= task_vectors(head, first, n)
        x = at(head[SCRATCH], types.float32)
        for i in range(n):
            total[i] = x[i]
        for t in range(1, models):
            x = at(head[SCRATCH] + 4 * BLOCK * t, types.float32)
            for i in range(n):
                total[i] = total[i] + x[i]
        for t in range(models):
            x = at(head[SCRATCH] + 4 * BLOCK * t, types.float32)
            inter = at(head[SCORES] + 4 * (t * count + first), types.float32)
            place = head[POWERS] + 4 * (t * (end - start) + first - start) if head[POWERS] else spare
            powers = at(place, types.float32)
            low, scale = own[MODEL * t + LOW], own[MODEL * t + SCALE]
            if head[LOWS]:
                for i in range(n):
                    size = number(bits(x[i]) & u32(0x7FFFFFFF))
                    norm = clamp((size - low) * scale, f32(0), times)
                    powers[i] = norm * norm - less
            else:
                for i in range(n):
                    norm = clamp(x[i] * scale, -times, times)
                    powers[i] = norm * norm - less
            if head[POWERS]:
                for i in range(n):
                    inter[i] = x[i] * total[i]
            else:
                for i in range(n):
                    y = x[i] * total[i]
                    large |= u32((bits(y) & u32(0x7FFFFFFF)) >= u32(SMALL))
                    inter[i] = y * power(powers[i])
    return i64(bad) + 2 * i64(large)


def compete(head):
    """One piece of the result, of the SCORES. Returns as `merge` does."""
    models, count, block = head[MODELS], head[COUNT], head[SCRATCH]
    kinds, inputs = at(head[KINDS], types.int64), at(head[INPUTS], types.int64)
    own = at(head[NUMBERS], types.float32)
    added = own[MODEL * models + ADDED]
    root = at(block + 4 * BLOCK * models, types.float32)
    total = at(block + 4 * BLOCK * (models + 1), types.float32)
    merged = at(block + 4 * BLOCK * (models + 2), types.float32)
    bad, wide = u32(0), u32(0)
    for first in range(0, count, BLOCK):
        n = min(BLOCK, count - first)
        bad |= task_vectors(head, first, n)
        for t in range(models):
            x = at(block + 4 * BLOCK * t, types.float32)
            beta = at(head[SCORES] + 4 * (t * count + first), types.float32)
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
    return i64(bad) + 2 * i64(wide)
