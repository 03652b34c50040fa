"""Normal numbers for long walks: counter-based, fast, with the same bits on every machine.

Four numbers of every 64 bits of Philox 4x64, each the middle of one of 65,536 equally likely parts of the normal
distribution. No logarithm or cosine is computed for a number, so that no library's last digit decides one, and no
number depends on another: any part of a sequence can be made, by any number of threads. `Rng.normal` draws the first
values of pools; its bits stay as they are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cache
from statistics import NormalDist

import numpy as np
import torch
from torch import Tensor

from .rng import key

LEVELS = 1 << 16
GRID = 2.0**-20  # of the levels: exact in float32, and far wider than any error of the inverse below
BLOCK = 1 << 16  # numbers that exist at a time


@cache
def levels() -> Tensor:
    """(65536,) float32, ascending, symmetric, of mean 0 and variance 1. The largest is 4.33."""
    half = [NormalDist().inv_cdf((i + 0.5) / LEVELS) for i in range(LEVELS // 2)]
    size = math.sqrt(2 * math.fsum(z * z for z in half) / LEVELS)
    low = torch.tensor([round(z / size / GRID) * GRID for z in half], dtype=torch.float32)
    return torch.cat([low, -low.flip(0)])


def blocks(seed: int, name: str, count: int, device: torch.device | str = "cpu") -> Iterator[tuple[int, Tensor]]:
    """(where it begins, numbers (n,) float32) of the sequence of (seed, name), in parts of at most `BLOCK`. A part is
    valid until the next one is asked for. Cost: about 4 ns a number on one core; memory: 1 MB, however long it is."""
    bits, table, out = np.random.Philox(key=key(seed, name)), levels(), torch.empty(min(BLOCK, count))
    for at in range(0, count, BLOCK):
        n = min(BLOCK, count - at)
        raw = bits.random_raw(-(-n // 4)).astype("<u8", copy=False).view("<u2")[:n]
        torch.index_select(table, 0, torch.from_numpy(raw.astype(np.int32)), out=out[:n])
        yield at, out[:n].to(device)


def direction(seed: int, name: str, shape: tuple[int, ...]) -> Tensor:
    """A whole one, float32."""
    out = torch.zeros(shape)
    return move_(out, name, [(seed, 1.0)])


@torch.no_grad()
def move_(value: Tensor, name: str, moves: Sequence[tuple[int, float]]) -> Tensor:
    """value += sum of scale * z(seed, name), in place, one move after the other and block by block.

    value: contiguous, of any floating dtype; each move rounds to it. The same bits on every device: the numbers are
    made on the CPU, and a product and then a sum, not fused, round in one way only. Raises: ValueError.
    """
    if not value.is_contiguous():
        raise ValueError(f"{name}: {tuple(value.shape)} is not contiguous; a view that is would be another tensor")
    flat = value.view(-1)
    for seed, scale in moves:
        for at, z in blocks(seed, name, flat.numel(), flat.device):
            flat[at : at + len(z)] += (z * scale).to(flat.dtype)
    return value


@torch.no_grad()
def moved_rows(value: Tensor, name: str, moves: Sequence[tuple[int, float]], rows: Tensor) -> Tensor:
    """``move_(value.clone(), ...)[rows]`` to the bit, without the clone. Shapes: value (n, d), rows (k,) ascending,
    each once -> (k, d). Cost: all numbers are made, those of the rows are used."""
    out, width = value[rows], value.shape[1]
    columns = torch.arange(width, device=rows.device)
    for seed, scale in moves:
        for at, z in blocks(seed, name, value.numel(), value.device):
            first, last = torch.tensor([at // width, (at + len(z) - 1) // width], device=rows.device)
            mine = slice(int(torch.searchsorted(rows, first)), int(torch.searchsorted(rows, last, right=True)))
            place = rows[mine, None] * width + columns - at
            inside = (place >= 0) & (place < len(z))
            some = out[mine]
            some[inside] += (z[place[inside]] * scale).to(out.dtype)
    return out
