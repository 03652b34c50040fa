"""First values of an array that many weights read by a hash."""

from __future__ import annotations

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
        chunk = self.addresses[0].chunk
        total, weight = torch.zeros(shape[0] // chunk, chunk), torch.zeros(shape[0] // chunk, 1)
        for name, address in zip(self.of, self.addresses, strict=True):
            w, scale = base.stored(name).float().cpu(), Spread(name)((1,), rng, base).cpu()
            at, sign = address.places(torch.device("cpu"))
            total.index_add_(0, at, w.reshape(-1, chunk) * (sign[:, None] * scale))
            weight.index_add_(0, at, scale.square().expand(len(at), 1))
        return (total / weight.clamp_min(1e-30)).flatten()
