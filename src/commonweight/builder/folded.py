"""First values of an array that many weights read by a hash."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..address import Hashed
from ..core import Rng, serial


@serial
@dataclass(frozen=True)
class Spread:
    """The standard deviation of a weight. Shape: (1,)."""

    derived = True
    of: str

    def __call__(self, shape: tuple[int, ...], rng: Rng, base: Any) -> Tensor:
        return base.stored(self.of).float().std().clamp_min(1e-12).view(1)


@serial
@dataclass(frozen=True)
class Folded:
    """The array whose reads are nearest to the weights: psi_j = sum lambda s w / sum lambda^2 over the readers of j.

    lambda: each weight's `Spread`. A number that nobody reads is 0. Cost: one pass over the weights.
    """

    derived = True
    of: tuple[str, ...]
    addresses: tuple[Hashed, ...]

    def __call__(self, shape: tuple[int, ...], rng: Rng, base: Any) -> Tensor:
        weights = ((base.stored(n), Spread(n)((1,), rng, base)) for n in self.of)
        return folded((w, scale, a) for (w, scale), a in zip(weights, self.addresses, strict=True))


def folded(readers: Iterable[tuple[Tensor, Tensor, Hashed]]) -> Tensor:
    """The array (m,) of `Folded`, of (weight, lambda, address) for each reader."""
    total = weight = torch.zeros(0)
    for w, scale, address in readers:
        chunk, scale = address.chunk, scale.float().cpu()
        if not len(total):
            total, weight = torch.zeros(address.size // chunk, chunk), torch.zeros(address.size // chunk, 1)
        at, sign = address.places(torch.device("cpu"))
        total.index_add_(0, at, w.float().cpu().reshape(-1, chunk) * (sign[:, None] * scale))
        weight.index_add_(0, at, scale.square().expand(len(at), 1))
    return (total / weight.clamp_min(1e-30)).flatten()
