"""Several frozen tenants' changes at one site, weighed: what a tenant over tenants does there."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from ..core import Base, CommonweightError, serial
from .low_rank import LowRank
from .mixture import GATED


@serial
@dataclass(frozen=True)
class Over:
    """y' = y + sum_i g_i u_i, u_i what tenant i adds. parts: of each tenant its binds here, in order; none where
    it does nothing. gate: (x, y, [u_i], slots of its own) -> the sum. source: the site whose input the gate reads,
    where it is not its own; lends: that site's. context: "embeddings" where it reads the mean of the row's input
    embeddings, of a decoder those of its prompt: one for all its tokens.

    Slots: ``i.j.slot`` for bind j of tenant i; the gate's own have no dot. No form of a weight: the sum is another one
    for each token. Cost: every tenant's own form, one after the other.
    """

    parts: tuple[tuple[Any, ...], ...]
    gate: Any
    source: str = ""
    lends: bool = False
    context: str = ""
    precise: ClassVar[bool] = True  # gates are worked out in float32
    unmerged: ClassVar[str] = GATED

    @property
    def tokenwise(self) -> bool:
        return not self.context

    def output(self, x: Tensor, y: Tensor, base: Any, **slots: Tensor) -> Tensor:
        added = [self._added(i, x, y, base, slots) for i in range(len(self.parts))]
        own = {k: v for k, v in slots.items() if "." not in k}
        seen = base.lent(self.source) if self.source else x
        if self.context:
            given, wanted = base.context.shape[-1], own["W1"].shape[-1]
            if given != wanted:
                raise CommonweightError(
                    f"a row's embedding is {given} wide in this model, and a gate here reads {wanted}; leave "
                    "context=row out"
                )
            seen = base.context.reshape(len(y), *[1] * (y.dim() - 2), -1)
        return y + self.gate(seen.float(), y, added, **own).to(y.dtype)

    def _added(self, i: int, x: Tensor, y: Tensor, base: Base, slots: Mapping[str, Tensor]) -> Tensor:
        binds = self.parts[i]
        if not binds:
            return torch.zeros_like(y)
        start = torch.zeros_like(y) if all(type(b) is LowRank for b in binds) else y  # nothing is lost beside a large y
        z = start
        for j, bind in enumerate(binds):
            z = bind.output(x, z, base, **part(slots, i, j, x if not getattr(bind, "precise", False) else None))
        return z - start


def part(slots: Mapping[str, Tensor], i: int, j: int, like: Tensor | None) -> dict[str, Tensor]:
    """The slots of bind j of tenant i, in the dtype of `like`."""
    front = f"{i}.{j}."
    mine = {k[len(front) :]: v for k, v in slots.items() if k.startswith(front)}
    return {k: v.to(like.dtype) if like is not None and v.is_floating_point() else v for k, v in mine.items()}


def weighed(g: Tensor, added: list[Tensor]) -> Tensor:
    """sum_i g_i u_i of g (..., n)."""
    out = torch.zeros_like(added[0])
    for i, u in enumerate(added):
        out = out + g[..., i, None].to(u.dtype) * u
    return out


def chosen(logits: Tensor, k: int) -> Tensor:
    """Softmax over the k largest, 0 elsewhere."""
    if k >= logits.shape[-1]:
        return logits.softmax(-1)
    top, at = logits.topk(k, -1)
    return torch.zeros_like(logits).scatter(-1, at, top.softmax(-1))


@serial
@dataclass(frozen=True)
class Likeness:
    """g = softmax(the k largest of |v_i x| / temperature). Slot: v (n, d_in)."""

    k: int
    temperature: float = 1.0

    def __call__(self, x: Tensor, y: Tensor, added: list[Tensor], v: Tensor) -> Tensor:
        return weighed(chosen(F.linear(x, v).abs() / self.temperature, self.k), added)


@serial
@dataclass(frozen=True)
class Sigmoid:
    """g = sigmoid(v x), of one tenant. Slot: v (1, d_in)."""

    def __call__(self, x: Tensor, y: Tensor, added: list[Tensor], v: Tensor) -> Tensor:
        return weighed(F.linear(x, v).sigmoid(), added)


@serial
@dataclass(frozen=True)
class Standard:
    """g = softmax(the k largest v'_i x' / sqrt(d_in)), v' and x' of mean 0 and variance 1. Slots: v0, ... (1, d_in)."""

    k: int

    def __call__(self, x: Tensor, y: Tensor, added: list[Tensor], **v: Tensor) -> Tensor:
        d = x.shape[-1]
        rows = torch.cat([v[f"v{i}"] for i in range(len(added))])
        logits = F.linear(F.layer_norm(x, (d,)), F.layer_norm(rows.float(), (d,))) / math.sqrt(d)
        return weighed(chosen(logits, self.k), added)


@serial
@dataclass(frozen=True)
class State:
    """g = W2 relu(W1 z + b1) + b2, of any sign and size. Slots: W1 (h, d), b1 (h,), W2 (n, h), b2 (n,)."""

    def __call__(
        self, x: Tensor, y: Tensor, added: list[Tensor], W1: Tensor, b1: Tensor, W2: Tensor, b2: Tensor
    ) -> Tensor:
        return weighed(F.linear(F.linear(x, W1, b1).relu(), W2, b2), added)


@serial
@dataclass(frozen=True)
class Network:
    """g = softmax(f(z) / temperature), or f(z); f of `depth` linear maps with relu between. k > 0: only the k largest.

    Slots: W0 (h, d), b0 (h,), ..., the last map's (n, h) and (n,)."""

    depth: int = 1
    softmax: bool = True
    temperature: float = 1.0
    k: int = 0

    def gates(self, x: Tensor, slots: Mapping[str, Tensor]) -> Tensor:
        for j in range(self.depth):
            x = F.linear(x if j == 0 else x.relu(), slots[f"W{j}"], slots[f"b{j}"])
        g = (x / self.temperature).softmax(-1) if self.softmax else x
        if not self.k:
            return g
        top, at = g.topk(self.k, -1)
        return torch.zeros_like(g).scatter(-1, at, top)

    def __call__(self, x: Tensor, y: Tensor, added: list[Tensor], **slots: Tensor) -> Tensor:
        return weighed(self.gates(x, slots), added)


@serial
@dataclass(frozen=True)
class Fusion:
    """sum_i w g_i u_i, g_i = sigmoid(u' a + y' u' c + b), u' and y' normalised. Slots: all (d_out,)."""

    def __call__(
        self, x: Tensor, y: Tensor, added: list[Tensor], a: Tensor, b: Tensor, c: Tensor, w: Tensor, gain_u: Tensor,
        shift_u: Tensor, gain_y: Tensor, shift_y: Tensor,
    ) -> Tensor:  # fmt: skip
        out, width = torch.zeros_like(y), (y.shape[-1],)
        seen = F.layer_norm(y.float(), width, gain_y, shift_y)
        for u in added:
            mine = F.layer_norm(u.float(), width, gain_u, shift_u)
            out = out + ((mine * a + seen * mine * c + b).sigmoid() * w).to(u.dtype) * u
        return out


@serial
@dataclass(frozen=True)
class Blend:
    """One low-rank update of several: A = sum_i c_i A_i, B = sum_i c_i B_i, w' = w + scale B A. n: how many.

    Slots: ``i.0.A`` (r, d_in), ``i.0.B`` (d_out, r) for each tenant, c (n,). The product has terms of pairs of tenants.
    """

    n: int
    scale: float = 1.0
    anywhere: ClassVar[str] = "through"

    def factors(self, c: Tensor, **slots: Tensor) -> tuple[Tensor, Tensor]:
        A, B = self._mixed(c, slots)
        return A, B * self.scale

    def weight(self, w: Tensor, **slots: Tensor) -> Tensor:
        A, B = self.factors(**slots)
        return w + B @ A

    def output(self, x: Tensor, y: Tensor, base: Base, c: Tensor, **slots: Tensor) -> Tensor:
        A, B = self._mixed(c, slots)
        return LowRank(self.scale).output(x, y, base, A=A, B=B)

    def grouped(self, x: Tensor, y: Tensor, base: Base, c: Tensor, **slots: Tensor) -> Tensor:
        """`output` of many readers at once: every tensor has a leading dimension."""
        A, B = self._mixed(c, slots)
        return LowRank(self.scale).grouped(x, y, base, A=A, B=B)

    def _mixed(self, c: Tensor, slots: Mapping[str, Tensor]) -> list[Tensor]:
        return [sum(c[..., i, None, None] * slots[f"{i}.0.{k}"] for i in range(self.n)) for k in "AB"]  # type: ignore[misc]
