"""How a pool's first values are made: data, so that a plan can be written down and read back.

An Init is a frozen dataclass with ``__call__(shape, rng, base) -> Tensor``. ``base`` gives what is derived
from the frozen model: ``base.weight(site)`` is its weight (out, inp) in float32, ``base.bias(site)`` its bias,
``base.svd(site)`` its thin SVD.
Such an Init has ``derived = True``: its values do not depend on the seed, so a host holds a frozen pool of it once; and
a file that does not carry the pool carries a check number of it, but for an Init with ``checked = False``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from .rng import Rng
from .serial import serial


class Source(Protocol):
    def weight(self, site: str) -> Tensor: ...
    def bias(self, site: str) -> Tensor: ...
    def svd(self, site: str, rounded: bool = False) -> tuple[Tensor, Tensor, Tensor]: ...


class Init(Protocol):
    def __call__(self, shape: tuple[int, ...], rng: Rng, base: Source) -> Tensor: ...


@serial
@dataclass(frozen=True)
class Constant:
    value: float = 0.0

    def __call__(self, shape: tuple[int, ...], rng: Rng, base: Source) -> Tensor:
        return torch.full(shape, self.value)


ZEROS, ONES = Constant(0.0), Constant(1.0)


@serial
@dataclass(frozen=True)
class Eyes:
    """Identities: (..., n, n)."""

    def __call__(self, shape: tuple[int, ...], rng: Rng, base: Source) -> Tensor:
        return torch.eye(shape[-1]).expand(shape).clone()


@serial
@dataclass(frozen=True)
class Normal:
    std: float = 1.0

    def __call__(self, shape: tuple[int, ...], rng: Rng, base: Source) -> Tensor:
        return rng.normal(shape, self.std)


@serial
@dataclass(frozen=True)
class Around:
    """Normal numbers around a value."""

    value: float
    std: float

    def __call__(self, shape: tuple[int, ...], rng: Rng, base: Source) -> Tensor:
        return rng.normal(shape, self.std) + self.value


@serial
@dataclass(frozen=True)
class Uniform:
    """Uniform in [-bound, bound)."""

    bound: float

    def __call__(self, shape: tuple[int, ...], rng: Rng, base: Source) -> Tensor:
        return rng.uniform(shape, -self.bound, self.bound)


@serial
@dataclass(frozen=True)
class Positive:
    """Uniform in [0, high)."""

    high: float

    def __call__(self, shape: tuple[int, ...], rng: Rng, base: Source) -> Tensor:
        return rng.uniform(shape, 0.0, self.high)


def kaiming(fan_in: int) -> Uniform:
    """What ``kaiming_uniform_(a=sqrt(5))`` gives, LoRA's usual A: bound 1 / sqrt(fan_in)."""
    return Uniform(1.0 / math.sqrt(fan_in))


@serial
@dataclass(frozen=True)
class Orthonormal:
    """Orthonormal columns (or rows, when wide) by QR of a normal matrix, signs fixed by R's diagonal. Of more than two
    dimensions all behind the first are one."""

    def __call__(self, shape: tuple[int, ...], rng: Rng, base: Source) -> Tensor:
        rows, columns = shape[0], math.prod(shape[1:])
        tall = rng.normal((max(rows, columns), min(rows, columns))).double()
        q, r = torch.linalg.qr(tall)
        q = (q * torch.sign(torch.diagonal(r))).float()
        return (q if rows >= columns else q.T.contiguous()).reshape(shape)


@serial
@dataclass(frozen=True)
class Values:
    """Given numbers, flattened. For small integer tables that a method computes itself."""

    values: tuple[float, ...]

    def __call__(self, shape: tuple[int, ...], rng: Rng, base: Source) -> Tensor:
        return torch.tensor(self.values).reshape(shape)


@serial
@dataclass(frozen=True)
class BaseWeight:
    """A function of the frozen weight of `site`: its singular vectors times a power of its singular values.

    part "U": columns of U_r diag(S_r)**power, shape (out, r). part "V": rows diag(S_r)**power V_r^T, shape (r, inp).
    Signs: each pair (u_i, v_i) is turned so that the largest |v_i| entry is positive. rounded: of the weight in
    bfloat16, so that copies of the base in bfloat16 and in float32 give the same.
    """

    derived = True

    site: str
    part: str
    power: float = 0.0
    rounded: bool = False

    def __call__(self, shape: tuple[int, ...], rng: Rng, base: Source) -> Tensor:
        u, s, v = base.svd(self.site, self.rounded)
        r = shape[1] if self.part == "U" else shape[0]
        s = s[:r] ** self.power
        return (u[:, :r] * s if self.part == "U" else s[:, None] * v[:r]).contiguous()
