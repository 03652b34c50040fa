"""Matrices that are tensor trains: products of small cores, one for each mode of the matrix's two widths."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

from torch import Tensor

from ..core import serial


@serial
@dataclass(frozen=True)
class TensorTrain:
    """W = G_1 G_2 ... G_d, a chain over the ranks between them, its modes in order laid out as `shape`.

    Shapes: pool G_1 (n_1, R), G_k (R, n_k, R), the last (R, n_d), with n_1 ... n_d = the numbers of W -> shape, or its
    transpose. Linear in: G_1, and each other core alone; they get gradients as well. Cost: R products for each number
    of W, and less for the partial chains. Source: LoRETTA, arXiv 2402.11417, section 3.
    """

    shape: tuple[int, int]
    transpose: bool = False

    def __call__(self, pool: Tensor, *cores: Tensor) -> Tensor:
        out = pool
        for core in cores:
            out = (out @ core.flatten(1)).view(-1, core.shape[-1] if core.dim() == 3 else 1)
        out = out.view(self.shape)
        return out.mT if self.transpose else out


@lru_cache(maxsize=4096)
def modes(width: int, most: int = 12) -> tuple[int, ...]:
    """width as a product of as few numbers up to `most` as can be, of the least sum, rising: 768 is 8 8 12.

    A prime above `most` is a mode of its own.
    """
    free, large = width, []
    for d in range(2, math.isqrt(width) + 1):
        while free % d == 0:
            free //= d
            large += [d] if d > most else []
    if free > most:
        large.append(free)
    rest = width // math.prod(large)
    best = min(_products(rest, 2, most), key=lambda p: (len(p), sum(p), p))
    return tuple(sorted((*best, *large))) or (1,)


@lru_cache(maxsize=4096)
def _products(width: int, least: int, most: int) -> tuple[tuple[int, ...], ...]:
    """All rising ways to write a width, whose primes are at most `most`, as a product of numbers up to `most`."""
    if width == 1:
        return ((),)
    return tuple(
        (d, *rest) for d in range(least, most + 1) if width % d == 0 for rest in _products(width // d, d, most)
    )
