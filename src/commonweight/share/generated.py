"""The pools of a small network that makes coefficients of a code; all readers of a model read the same one."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ..builder.inits import Mean
from ..core import ZEROS, Init, Normal, Pool, Rng, Values, serial


def code(values: tuple[float, ...], dtype: str) -> Pool:
    """What the network reads: it is chosen, not trained."""
    return Pool((len(values),), Values(values), train=False, dtype=dtype)


def layers(name: str, sizes: tuple[int, ...], dtype: str, fan: str = "in", seed: int = 0) -> dict[str, Pool]:
    """Weights and biases in turn, from sizes[0] inputs to sizes[-1] outputs. Kaiming normal for ReLU, biases zero."""
    pools: dict[str, Pool] = {}
    for n, (inp, out) in enumerate(pairwise(sizes)):
        std = (2 / (inp if fan == "in" else out)) ** 0.5
        pools[f"{name}.{n}.weight"] = Pool((out, inp), Normal(std), dtype=dtype)
        pools[f"{name}.{n}.bias"] = Pool((out,), ZEROS, dtype=dtype)
    return pools


@serial
@dataclass(frozen=True)
class Bank:
    """Matrices side by side: the first one a weight of the original; the others the same plus `noise` times its mean
    square's root times normal numbers, or with `alone` those numbers alone, of std `std`."""

    of: str
    noise: float = 0.0
    std: float | None = None

    def __call__(self, shape: tuple[int, ...], rng: Rng, base: Any) -> Tensor:
        first = Mean((self.of,))(shape[1:], rng, base)
        rest = (shape[0] - 1, *shape[1:])
        if self.std is not None:
            others = rng.normal(rest, self.std)
        else:
            size = float(first.float().square().mean().sqrt()) * self.noise
            others = first.float()[None] + (rng.normal(rest, size) if size else torch.zeros(rest))
        return torch.cat([first[None], others.to(first)])


def kaiming_rows(rows: int, start: str) -> float:
    """std of a block of the last layer, which has so many rows. start: "zero" | "fan_out"."""
    return 0.0 if start == "zero" else (2 / rows) ** 0.5


__all__: list[str] = ["Bank", "Init", "code", "kaiming_rows", "layers"]
