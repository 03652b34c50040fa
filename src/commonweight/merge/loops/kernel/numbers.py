"""Pointers, bits and the three formats of weights. Every format becomes float32 without a rounding."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import extending, njit, types

BLOCK = 2048  # numbers that go through all steps of a pass while they are in the first cache
BF16, F16, F32 = 0, 1, 2

f32, i32, i64, u8, u16, u32, u64 = np.float32, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64
intrinsic: Any = extending.intrinsic  # what it makes takes no `typing`
inline = njit(error_model="numpy", forceinline=True)
_ONES = 0x7F800000  # the exponent of what is no finite float32


@intrinsic
def at(typing, address, kind):
    """The pointer of `kind` (as types.int64) to an address."""
    pointer = types.CPointer(kind.dtype)

    def code(context, builder, signature, args):
        return builder.inttoptr(args[0], context.get_value_type(pointer))

    return pointer(types.int64, kind), code


@intrinsic
def number(typing, bits):
    """The float32 of these 32 bits."""

    def code(context, builder, signature, args):
        return builder.bitcast(args[0], ir.FloatType())

    return types.float32(types.uint32), code


@intrinsic
def bits(typing, x):
    """uint32: the bits of a float32."""

    def code(context, builder, signature, args):
        return builder.bitcast(args[0], ir.IntType(32))

    return types.uint32(types.float32), code


@intrinsic
def fma(typing, a, b, c):
    """a b + c, rounded once, as torch adds with a factor."""

    def code(context, builder, signature, args):
        f = ir.FloatType()
        return builder.call(builder.module.declare_intrinsic("llvm.fma", [f], ir.FunctionType(f, [f, f, f])), args)

    f = types.float32
    return f(f, f, f), code


@intrinsic
def product(typing, a, b):
    """(uint64, uint64): the upper and the lower half of a product of two uint64."""

    def code(context, builder, signature, args):
        wide = ir.IntType(128)
        both = builder.mul(*(builder.zext(x, wide) for x in args))
        upper = builder.trunc(builder.lshr(both, ir.Constant(wide, 64)), ir.IntType(64))
        return context.make_tuple(builder, signature.return_type, (upper, builder.trunc(both, ir.IntType(64))))

    return types.UniTuple(types.uint64, 2)(types.uint64, types.uint64), code


@intrinsic
def before(typing, keys, edge):
    """uint64: a bit for each of 64 int32 keys, whether it is less than an edge."""

    def code(context, builder, signature, args):
        lane = ir.VectorType(ir.IntType(32), 64)
        found = builder.load(builder.bitcast(args[0], lane.as_pointer()), align=4)
        one = builder.insert_element(ir.Constant(lane, ir.Undefined), args[1], ir.Constant(ir.IntType(32), 0))
        same = builder.shuffle_vector(one, ir.Constant(lane, ir.Undefined), ir.Constant(lane, [0] * 64))
        return builder.bitcast(builder.icmp_signed("<", found, same), ir.IntType(64))

    return types.uint64(types.CPointer(types.int32), types.int32), code


@intrinsic
def ones(typing, mask):
    """How many bits of a uint64 are set."""

    def code(context, builder, signature, args):
        return builder.ctpop(args[0])

    return types.int64(types.uint64), code


@intrinsic
def first_one(typing, mask):
    """The place of the lowest bit of a uint64 that is set; there must be one."""

    def code(context, builder, signature, args):
        return builder.cttz(args[0], ir.Constant(ir.IntType(1), 1))

    return types.int64(types.uint64), code


@inline
def load(kind, address, first, n, out):
    """n numbers from the `first` on, as float32 in `out`; returns whether any is no finite number (uint32)."""
    bad = u32(0)
    if kind == BF16:
        x = at(address + 2 * first, types.uint16)
        for i in range(n):
            b = u32(x[i]) << u32(16)
            bad |= u32((b & u32(_ONES)) == u32(_ONES))
            out[i] = number(b)
    elif kind == F16:
        x = at(address + 2 * first, types.uint16)
        for i in range(n):
            h = u32(x[i])
            size = h & u32(0x7FFF)
            bad |= u32(size >= u32(0x7C00))
            small = f32(i32(size)) * f32(2.0**-24)
            usual = number((size << u32(13)) + u32(112 << 23))
            b = bits(small if size < u32(0x400) else usual)
            out[i] = number(b | ((h & u32(0x8000)) << u32(16)))
    else:
        y = at(address + 4 * first, types.uint32)
        for i in range(n):
            bad |= u32((y[i] & u32(_ONES)) == u32(_ONES))
            out[i] = number(y[i])
    return bad


@inline
def store(kind, x, n, address, first):
    """Rounds n numbers of x to `kind`, to the nearest, ties to even; returns whether any does not fit (uint32)."""
    bad = u32(0)
    if kind == BF16:
        out = at(address + 2 * first, types.uint16)
        for i in range(n):
            b = bits(x[i])
            bad |= u32((b & u32(_ONES)) == u32(_ONES))
            out[i] = u16((b + u32(0x7FFF) + ((b >> u32(16)) & u32(1))) >> u32(16))
    elif kind == F16:
        out = at(address + 2 * first, types.uint16)
        for i in range(n):
            b = bits(x[i])
            size = b & u32(0x7FFFFFFF)
            bad |= u32(size > u32(0x477FE000))  # 65504
            usual = ((size + u32(0xFFF) + ((size >> u32(13)) & u32(1))) >> u32(13)) - u32(112 << 10)
            small = bits(number(size) + f32(0.5)) - u32(0x3F000000)
            out[i] = u16((small if size < u32(113 << 23) else usual) | ((b >> u32(16)) & u32(0x8000)))
    else:
        y = at(address + 4 * first, types.uint32)
        for i in range(n):
            b = bits(x[i])
            bad |= u32((b & u32(_ONES)) == u32(_ONES))
            y[i] = b
    return bad


@inline
def mark(kind, address, first, n, sums):
    """A digest's sums of 64-bit words, over the whole rows of 4096 bytes in n numbers from `first` on: at the address
    `sums`, first the 512 of the columns, then those of the rows."""
    size = 4 if kind == F32 else 2
    columns = at(sums, types.int64)
    for r in range(n * size // 4096):
        words = at(address + first * size + 4096 * r, types.int64)
        total = i64(0)
        for i in range(512):
            total += words[i]
            columns[i] += words[i]
        columns[512 + first * size // 4096 + r] = total
