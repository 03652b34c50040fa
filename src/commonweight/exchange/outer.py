"""The outer step of DiLoCo: which pools are a fragment, how a gradient is made smaller, and Nesterov's momentum.

Plain tensors in and out: the exchange method and the processes of `torchrun` both use it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..core import CommonweightError

BITS = (32, 8, 4)
TOP = {8: 448.0, 4: 1.0}  # the largest number of a code, before its scale


def layer(name: str) -> int | None:
    """The number of the layer in a pool's name; None outside of layers."""
    found = re.search(r"(?:^|[./])(\d+)(?:[./]|$)", name)
    return int(found[1]) if found else None


def fragments(names: Sequence[str], count: int) -> list[tuple[str, ...]]:
    """The pools of each fragment: layer l is in fragment l mod count, what is in no layer in the first.

    Raises: CommonweightError where a fragment would be empty.
    """
    there = sorted({layer(n) for n in names} - {None})  # type: ignore[type-var]
    layers = {k: i for i, k in enumerate(there)}
    out: list[list[str]] = [[] for _ in range(count)]
    for n in names:
        k = layer(n)
        out[0 if k is None else layers[k] % count].append(n)
    if not all(out):
        raise CommonweightError(
            f"fragments={count}: the pools lie in {len(layers)} layers, so that a fragment would be empty; "
            f"wanted at most {max(1, len(layers))}"
        )
    return [tuple(some) for some in out]


def nesterov(
    values: Mapping[str, Tensor], speed: Mapping[str, Tensor], change: Mapping[str, Tensor], lr: float, momentum: float
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(values, speed) after one outer step: v <- mu v + D, theta <- theta - eta (D + mu v). change: D, of the pools
    that step; only those are given back. float64 in between."""
    out, fast = {}, {}
    for n, d in change.items():
        v = momentum * speed[n].double() + d.double() if n in speed else d.double()
        out[n] = (values[n].double() - lr * (d.double() + momentum * v)).to(values[n].dtype)
        fast[n] = v.to(values[n].dtype)
    return out, fast


def coded(numbers: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """(codes, scale) of one tensor: uint8 (n,) for 8 bits, (ceil n/2,) for 4; scale () float32.

    8 bits: float8 E4M3 of x / scale, whose largest number is then 448. 4 bits: E3M0, a sign and one of seven powers of
    two, 1 to 1/64 of the largest, or zero; rounded to the nearest.
    """
    flat = numbers.detach().reshape(-1).float()
    scale = flat.abs().max() / TOP[bits] if flat.numel() else torch.zeros(())
    x = flat / scale if float(scale) > 0 else torch.zeros_like(flat)
    if bits == 8:
        return x.clamp(-TOP[8], TOP[8]).to(torch.float8_e4m3fn).view(torch.uint8), scale
    edges = torch.tensor([2.0**-7, *(0.75 * 2.0**-k for k in range(5, -1, -1))])
    code = torch.bucketize(x.abs(), edges, right=True).to(torch.uint8)  # 0: zero; k: 2^(k - 7)
    code |= (x < 0).to(torch.uint8) << 3
    if len(code) % 2:
        code = torch.cat([code, code.new_zeros(1)])
    return code[::2] | code[1::2] << 4, scale


def decoded(codes: Tensor, scale: Tensor, bits: int, shape: Sequence[int]) -> Tensor:
    """The numbers again, float32. A code that is no number (8 bits have two) is zero."""
    if bits == 8:
        return (codes.view(torch.float8_e4m3fn).float().nan_to_num(nan=0.0) * scale).reshape(tuple(shape))
    code = torch.stack([codes & 15, codes >> 4], 1).reshape(-1)[: torch.Size(shape).numel()]
    size = code & 7
    value = torch.where(size > 0, torch.exp2(size.float() - 7), 0.0)
    return (torch.where(code > 7, -value, value) * scale).reshape(tuple(shape))


def nbytes(count: int, bits: int) -> int:
    """Of one tensor's codes, without its scale."""
    return 4 * count if bits == 32 else (count * bits + 7) // 8
