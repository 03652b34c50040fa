"""Random numbers by Philox 4x64-10 as NumPy has it (Salmon et al., SC 2011), and what they drop."""

from __future__ import annotations

from numba import types

from .numbers import at, bits, f32, i32, i64, inline, number, product, u8, u16, u32, u64

# of a model's whole numbers: where the keys of its two sequences are, its chance in 2^24ths (negative: each number has
# its own), the address of its ranks and how many a row has, whether the smallest is the first
KEYS, LOW_KEYS, EDGE, RANKS, WIDTH, UP = 0, 1, 2, 3, 4, 5
DROPS, CHANCES = 6, 7  # numbers that a model has


@inline
def philox(block, key, out):
    """Four words of the sequence of a key, from word 4 block on."""
    a, b, c, d = u64(block + 1), u64(0), u64(0), u64(0)
    k, l = key[0], key[1]
    for _ in range(10):
        up, low = product(u64(0xD2E7470EE14C6C93), a)
        upper, lower = product(u64(0xCA5A826395121157), c)
        a, b, c, d = upper ^ b ^ k, lower, up ^ d ^ l, low
        k += u64(0x9E3779B97F4A7C15)
        l += u64(0xBB67AE8584CAA73B)
    out[0], out[1], out[2], out[3] = a, b, c, d


@inline
def words(first, last, key, address):
    """Blocks first .. last - 1 of a sequence, one after the other."""
    for block in range(first, last):
        philox(block, key, at(address + 32 * (block - first), types.uint64))


@inline
def drawn(start, n, key, size, address):
    """The address of numbers start .. start + n of a sequence of numbers of `size` bytes."""
    each = 32 // size  # in a block
    words(start // each, (start + n + each - 1) // each, at(i64(key), types.uint64), address)
    return address + size * (start % each)


@inline
def below(x, n, start, model, scratch):
    """Zero, with the number's sign, where the sequences do not lie below model[EDGE]. The second one is looked at where
    the first does not decide. scratch: two bytes a number, and 64 more."""
    edge = u32(model[EDGE])
    top, low = u16(edge >> u32(8)), u8(edge & u32(255))
    flags = at(drawn(start, n, model[KEYS], 2, scratch), types.uint16)
    near = i64(0)
    for i in range(n):
        near += i64(flags[i] == top)
        flags[i] = u16(flags[i] < top) + u16(2) * u16(flags[i] == top)
    if near > 0:
        word = at(scratch + 2 * n + 64, types.uint64)
        for i in range(n):
            if flags[i] == u16(2):
                philox((start + i) // 32, at(i64(model[LOW_KEYS]), types.uint64), word)
                flags[i] = u16(at(scratch + 2 * n + 64 + (start + i) % 32, types.uint8)[0] < low)
    for i in range(n):
        x[i] = number(bits(x[i]) & (u32(0xFFFFFFFF) if flags[i] == u16(1) else u32(0x80000000)))


@inline
def ranked(x, n, start, first, model, chance, scratch):
    """The same where each number has a chance of its own, by its rank in its row; divided by it if chance[5] says so.
    first: the block's place in the piece. scratch: three bytes a number, and 128 more."""
    tops = at(drawn(start, n, model[KEYS], 2, scratch), types.uint16)
    lows = at(drawn(start, n, model[LOW_KEYS], 1, scratch + 2 * n + 64), types.uint8)
    rank = at(model[RANKS] + 4 * first, types.float32)
    width, scaled = f32(model[WIDTH]), chance[5] == f32(1)
    for i in range(n):
        if model[UP]:
            p = chance[1] + rank[i] / width * f32(2) * chance[3]
        else:
            p = f32(1) - (chance[1] - chance[2] + chance[3] * rank[i] / width)
        p = p if chance[4] == f32(0) else f32(1)
        draw = f32(i32(u32(tops[i]) * u32(256) + u32(lows[i]))) * f32(2.0**-24)
        left = number(bits(x[i]) & (u32(0xFFFFFFFF) if draw < p else u32(0x80000000)))
        x[i] = left / p if scaled else left


@inline
def drop(x, n, start, first, model, chance, scratch):
    """What stays of x, rescaled. chance: the one of all numbers, or of which each has its own (1: 1 - density, or
    density - epsilon with model[UP]; 2: epsilon / 2; 3: epsilon; 4: whether all stay); 5: whether what stays is divided
    by its chance (1) or multiplied by 6 (2)."""
    if model[EDGE] < 0:
        ranked(x, n, start, first, model, chance, scratch)
    else:
        if model[EDGE] < 1 << 24:
            below(x, n, start, model, scratch)
        if chance[5] == f32(1):
            for i in range(n):
                x[i] = x[i] / chance[0]
    if chance[5] == f32(2):
        for i in range(n):
            x[i] = x[i] * chance[6]
