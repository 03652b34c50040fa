"""What several methods share: task vectors, masks, election of signs, drawing, and surveys. `T` models."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from ..core import Rng
from . import select
from .registry import At, Survey

Scope = Callable[[Mapping[str, Any]], Literal["tensor", "model"] | None]


def deltas(tensors: Sequence[Tensor], base: Tensor | None) -> Tensor:
    """(T, *shape): the task vectors, or the tensors themselves where there is no base."""
    if base is None:
        return torch.stack(list(tensors))
    out = torch.empty(len(tensors), *base.shape)
    for i, t in enumerate(tensors):
        torch.sub(t, base, out=out[i])
    return out


def column(values: Sequence[float], like: Tensor) -> Tensor:
    """(T, 1, ...), to multiply a stack by one number a model."""
    return torch.tensor(values, dtype=torch.float32).view(-1, *[1] * (like.dim() - 1))


def combine(stack: Tensor | Sequence[Tensor], values: Sequence[float] | Tensor) -> Tensor:
    """sum_t values_t stack_t."""
    first, *rest = values.tolist() if isinstance(values, Tensor) else values
    out = stack[0] * first
    for x, v in zip(stack[1:], rest, strict=True):
        out.add_(x, alpha=v)
    return out


def agreeing(
    tau: Tensor,
    weights: Sequence[float],
    *,
    elect: Literal["plain", "weighted"] = "plain",
    zero: int = 0,
    divide: Literal["weights", "count", "one"] = "weights",
) -> Tensor:
    """Sign election and disjoint merge. tau (T, *shape) -> (*shape).

    elect: whose sum gives the sign, tau's or that of the weighted tau; zero: the sign where the sum is 0 (0: nobody
    agrees).
    """
    w = column(weights, tau)
    weighted = tau * w
    sign = (weighted if elect == "weighted" else tau).sum(0).sign()
    if zero:
        sign = torch.where(sign == 0, torch.full_like(sign, zero), sign)
    agree = ((weighted if elect == "weighted" else tau).sign() == sign) & (sign != 0)
    total = (weighted * agree).sum(0)
    if divide == "one":
        return total
    parts = (w * agree).sum(0) if divide == "weights" else agree.sum(0).float()
    return total / torch.where(parts == 0, torch.ones_like(parts), parts)


class _Draws(Rng):
    def skip(self, n: int) -> int:
        """Goes on by whole blocks of four; returns how many numbers are still to be thrown away."""
        self._bits.advance(n // 4)
        return n % 4


def uniform(seed: int, at: At, model: int, like: Tensor) -> Tensor:
    """float32 in [0, 1): the piece's own part of a sequence that depends on (seed, tensor, model) only."""
    rng = _Draws(seed, f"{at.name}/{model}")
    over = rng.skip(at.start)
    return rng.uniform((like.numel() + over,))[over:].view(like.shape)


def place(at: At, scope: str = "tensor") -> int:
    """The index of the piece's first element in its tensor, or in the model."""
    return at.start + (at.offset if scope == "model" else 0)


def magnitude_cuts(ranks: Callable[..., tuple[tuple[int, ...], ...]], scope: Scope) -> Survey:
    """Finds each task vector's largest magnitudes: cuts after ranks(numel, config) elements, equal ones by index."""

    def look(
        tensors: Sequence[Tensor], base: Tensor | None, *, at: At, seen: Any, numel: int, **config: Any
    ) -> dict[str, Tensor]:
        tau = deltas(tensors, base).flatten(1)
        finds = select.start(ranks(numel, config)) if seen is None else seen
        return {"counts": select.count(finds, select.magnitude_key(tau), place(at, scope(config) or "tensor"))}

    def join(total: dict[str, Tensor], seen: Any, *, numel: int, **config: Any) -> tuple[Any, bool]:
        return select.step(select.start(ranks(numel, config)) if seen is None else seen, total["counts"], numel)

    return Survey(look, join, scope)


def top(finds: Any, tau: Tensor, at: At, scope: str, which: int = 0) -> Tensor:
    """bool (T, *shape): the elements before the cut."""
    keys = select.magnitude_key(tau.flatten(1))
    return select.held(finds, keys, place(at, scope), which).view(tau.shape)


def sums(look: Callable[..., dict[str, Tensor]], scope: Scope) -> Survey:
    """A survey of one round: what `look` gives, added up in float64."""

    def join(total: dict[str, Tensor], seen: Any, **config: Any) -> tuple[Any, bool]:
        return total, True

    return Survey(look, join, scope)


def _gram(tensors: Sequence[Tensor], base: Tensor | None, **config: Any) -> dict[str, Tensor]:
    x = deltas(tensors, base).flatten(1).double()
    return {"gram": x @ x.T}


def gram(scope: Scope = lambda config: "tensor") -> Survey:
    """(T, T) inner products of a tensor's task vectors (of the tensors, without a base), in float64."""
    return sums(_gram, scope)


def ranks_in_rows(x: Tensor, dim: int = -1, descending: bool = True) -> Tensor:
    """int64: each element's rank by magnitude along `dim`, from 0; equal magnitudes by index."""
    order = x.abs().sort(dim=dim, descending=descending, stable=True).indices
    spread = torch.arange(x.shape[dim]).view([-1 if d == dim % x.dim() else 1 for d in range(x.dim())]).expand_as(order)
    return torch.empty_like(order).scatter_(dim, order, spread)
