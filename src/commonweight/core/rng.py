"""Counter-based random numbers: a pool's values depend on (seed, pool name) and on nothing else.

Philox 4x64 (Salmon et al., SC 2011) by NumPy, whose raw bits are a fixed sequence; the step from bits to
floats is ours, so that no library update can move it. Always drawn on the CPU: the same on every device.
"""

from __future__ import annotations

import functools
import hashlib
import math

import numpy as np
import torch
from torch import Tensor


def key(seed: int, name: str) -> np.ndarray:
    """uint64 (2,): the key of a name's sequence."""
    return np.frombuffer(hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=16).digest(), dtype=np.uint64)


class Rng:
    """Numbers for one named pool. Cost: one Philox block per value; 10 M normals take about 0.3 s."""

    def __init__(self, seed: int, name: str):
        self._of = seed, name

    @functools.cached_property
    def _bits(self) -> np.random.Philox:
        """Made for who draws: a pool that starts at zero takes longer to make it than to be filled."""
        return np.random.Philox(key=key(*self._of))

    def uniform(self, shape: tuple[int, ...], low: float = 0.0, high: float = 1.0) -> Tensor:
        """float32 in [low, high), from the top 24 bits of each draw."""
        raw = self._bits.random_raw(math.prod(shape)) >> np.uint64(40)
        unit = torch.from_numpy(raw.astype(np.float32)).mul_(2.0**-24)
        return unit.mul_(high - low).add_(low).reshape(shape)

    def normal(self, shape: tuple[int, ...], std: float = 1.0) -> Tensor:
        """float32 normals by Box-Muller in float64."""
        n = math.prod(shape)
        half = (n + 1) // 2
        raw = self._bits.random_raw(2 * half) >> np.uint64(11)
        unit = (raw.astype(np.float64) + 0.5) * 2.0**-53
        radius, angle = np.sqrt(-2.0 * np.log(unit[:half])), 2.0 * np.pi * unit[half:]
        both = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:n]
        return torch.from_numpy((both * std).astype(np.float32)).reshape(shape)

    def signs(self, shape: tuple[int, ...]) -> Tensor:
        """float32 +1 or -1."""
        raw = self._bits.random_raw(math.prod(shape)) >> np.uint64(63)
        return torch.from_numpy(raw.astype(np.float32)).mul_(2).sub_(1).reshape(shape)

    def integers(self, shape: tuple[int, ...], high: int) -> Tensor:
        """int64 in [0, high); the bias is below high / 2**32."""
        raw = self._bits.random_raw(math.prod(shape)) >> np.uint64(32)
        return torch.from_numpy(((raw * np.uint64(high)) >> np.uint64(32)).astype(np.int64)).reshape(shape)

    def permutation(self, n: int) -> Tensor:
        """int64 permutation of range(n)."""
        return torch.from_numpy(np.argsort(self._bits.random_raw(n), kind="stable").astype(np.int64))
