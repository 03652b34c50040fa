"""One small array behind the numbers of a whole model, found by a hash that nobody has to store."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core import serial


def hashed(x: Tensor, seed: int) -> Tensor:
    """SplitMix64's finaliser of x + (seed + 1) times its odd constant: int64 -> int64, the same on every device.

    hashed([0, 1, 2], 0) = [-2152535657050944081, -7995527694508729151, -7541218347953203506].
    """
    x = x + torch.tensor(-7046029254386353131, dtype=torch.int64, device=x.device) * (seed + 1)
    x = (x ^ ((x >> 30) & 0x3FFFFFFFF)) * -4658895280553007687
    x = (x ^ ((x >> 27) & 0x1FFFFFFFFF)) * -7723592293110705685
    return x ^ ((x >> 31) & 0x1FFFFFFFF)


@serial
@dataclass(frozen=True)
class Hashed:
    """A weight whose numbers are those of one array, in chunks, times a sign for each chunk and one scale.

    Shapes: pool (m,), scale (1,) -> shape. The model's numbers stand in one row, of which the weight begins at `start`;
    it is cut into parts of m. balanced: each part is a permutation of the array's chunks (STABLE-RPS), so that no two
    numbers of the array differ by more than one in their readers, and one part is all of it; else a chunk lies where
    its hash says (ROAST), and some places are read by none. Linear in: pool and scale, each alone. Cost: one read for
    each number; places are worked out once, 12 bytes a chunk. Source: arXiv 2310.11611 (STABLE-RPS), arXiv 2207.10702
    (ROAST). start, m and the weight's size are multiples of chunk.
    """

    start: int
    shape: tuple[int, ...]
    size: int
    chunk: int = 1
    seed: int = 0
    balanced: bool = True

    def __call__(self, pool: Tensor, scale: Tensor) -> Tensor:
        at, sign = self.places(pool.device)
        rows = pool.view(-1, self.chunk).index_select(0, at)
        return (rows * (sign.to(pool.dtype)[:, None] * scale)).view(self.shape)

    def places(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """(which chunk of the array each chunk of the weight reads, its sign)."""
        held = self.__dict__.get("held", {})
        if str(device) not in held:
            first, n, most = self.start // self.chunk, math.prod(self.shape) // self.chunk, self.size // self.chunk
            number = torch.arange(first, first + n, device=device)
            sign = (hashed(number, 2 * self.seed + 1) & 1) * 2 - 1
            if self.balanced:
                some = range(first // most, (first + n - 1) // most + 1)
                every = [torch.arange(p * most, (p + 1) * most, device=device) for p in some]
                dealt = torch.cat([hashed(part, 2 * self.seed).argsort(stable=True) for part in every])
                at = dealt[first - some[0] * most :][:n]
            else:
                at = (hashed(number, 2 * self.seed) >> 1).remainder(most)
            held = self.__dict__["held"] = {**held, str(device): (at.int(), sign.to(torch.int8))}
        return held[str(device)]
