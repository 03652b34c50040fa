"""What several methods share: task vectors, masks, election of signs, drawing, and surveys. `T` models."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ...core import Rng
from ..registry import At, Survey
from ..registry.steps import Count
from ..statistics import Statistics
from . import select

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


def exp2(x: Tensor) -> Tensor:
    """2**x in x's own place (contiguous). torch makes the last few of all numbers in another way, with other bits; here
    all are made in the same way, wherever they stand."""
    flat, whole = x.view(-1), x.numel() // 64 * 64
    torch.exp2(flat[:whole], out=flat[:whole])
    if whole < len(flat):
        rest = torch.zeros(64)
        rest[: len(flat) - whole] = flat[whole:]
        flat[whole:] = rest.exp2_()[: len(flat) - whole]
    return x


def scaled(tensors: Sequence[Tensor], base: Tensor, at: At, coefficients: Statistics) -> Tensor:
    """theta_0 + sum_t c_t tau_t with the tensor's own c (T,); a tensor that has none (a buffer) stays the base's."""
    if not coefficients.has("coefficients", at.name):
        return base.clone()
    return base + combine(deltas(tensors, base), coefficients.whole("coefficients", at.name, (len(tensors),)))


def shares(weights: Sequence[float], scale: float, normalize: bool = False) -> tuple[float, ...]:
    """The weights times the scale; normalize: divided by their sum."""
    share = scale / (sum(weights) if normalize else 1.0)
    return tuple(w * share for w in weights)


def onto(base: Tensor, tau: Tensor, weights: Sequence[float]) -> Tensor:
    """base + sum_t w_t tau_t."""
    out = base.clone()
    for x, w in zip(tau, weights, strict=True):
        out.add_(x, alpha=w)
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
    agrees). Where the weights that agree cancel, there is nothing to divide by and the sum is 0; with
    elect="weighted", which is mergekit's alone, a sum of exactly 0 counts as 1 and one near 0 as it is, as there.
    Done in products with the sign, without masks: comparisons cost several times as much.
    """
    signs = [math.copysign(1.0, w) if w else 0.0 for w in weights] if elect == "weighted" else [1.0] * len(weights)
    total = combine(tau, weights if elect == "weighted" else signs)
    if zero:
        sign = torch.copysign(torch.ones(()), total.mul_(zero).add_(0.0)).mul_(zero)  # adding makes no zero negative
    else:
        sign = total.sign_()
    exact = divide == "weights" and elect == "plain" and may_cancel(tuple(weights))
    merged, parts = torch.zeros_like(sign), torch.zeros_like(sign, dtype=torch.float64 if exact else None)
    sizes = torch.zeros_like(parts) if exact else None
    for x, w, own in zip(tau, weights, signs, strict=True):
        if not own:
            continue
        part = (x * sign).mul_(own).relu_() if own < 0 else (x * sign).relu_()  # |x| where it agrees, else 0
        merged.add_(part, alpha=w * own if elect == "weighted" else w)
        if divide != "one":
            parts.add_(part.sign_(), alpha=w if divide == "weights" else 1.0)
        if sizes is not None:
            sizes.add_(part, alpha=abs(w))
    merged.mul_(sign)
    if divide == "one":
        return merged
    if sizes is not None:
        return merged.div_(parts.masked_fill_(parts.abs() <= _NOTHING * sizes, math.inf))
    count = parts.numpy()
    return merged.div_(torch.from_numpy(np.add(count, count == 0)))


_NOTHING, _NEAR = 1e-6, 1e-3  # of a sum of weights, relative to that of their sizes: it counts as 0; it needs float64


@lru_cache
def may_cancel(weights: tuple[float, ...]) -> bool:
    """Whether some of the weights add up to so little that float32 may not tell their sum from zero.

    All 2^T sums of up to 16 weights are looked at, once; more than that, of both signs, may.
    """
    weights = tuple(w for w in weights if w)
    if all(w > 0 for w in weights) or all(w < 0 for w in weights):
        return False
    if len(weights) > 16:
        return True
    sums, sizes = np.zeros(1), np.zeros(1)
    for w in weights:
        sums, sizes = np.append(sums, sums + w), np.append(sizes, sizes + abs(w))
    return bool((np.abs(sums[1:]) <= _NEAR * sizes[1:]).any())


def rank(s: Tensor) -> int:
    """How many of a matrix's singular values, all of them in falling order, say something of the matrix.

    The others are less than what changing every number by a millionth of itself can make, some eight roundings of
    float32; their directions are made by rounding, and a method must not build on them. The bound is 1e-6 |x|_F
    whatever the shape: max(m, n) eps |x|_2 would take directions that it has from the long matrix of an embedding.
    """
    return int((s > 1e-6 * s.norm()).sum())


class _Words(Rng):
    """The sequence of 64-bit words of a name, from any place on."""

    def words(self, first: int, count: int) -> np.ndarray:
        """uint64 (count,): to be asked for in rising order."""
        skip = first - self._at
        self._bits.advance(skip // 4)  # a Philox block is four words
        raw = self._bits.random_raw(skip % 4 + count)[skip % 4 :]
        self._at += skip // 4 * 4 + -(-(skip % 4 + count) // 4) * 4
        return raw

    _at = 0


def uniform(seed: int, at: At, model: int, like: Tensor) -> Tensor:
    """float32 in [0, 1): the piece's own part of a sequence that depends on (seed, tensor, model) only.

    24 bits each: 16 of one sequence, of which a word has four, and 8 of another, of which a word has eight.
    """
    n = like.numel()
    high, low = _part(seed, at, model, n, np.uint16), _part(seed, at, model, n, np.uint8)
    return torch.from_numpy((high.astype(np.float32) * 256 + low) * np.float32(2.0**-24)).view(like.shape)


def below(seed: int, at: At, model: int, like: Tensor, chance: float) -> Tensor:
    """uniform(...) < chance, bool; the second sequence is read only where the first does not decide."""
    n = like.numel()
    edge = math.ceil(float(np.float32(chance)) * 2**24)
    high = _part(seed, at, model, n, np.uint16)
    if edge >= 1 << 24:
        return torch.ones(like.shape, dtype=torch.bool)
    mask = high < np.uint16(edge >> 8)
    if edge & 255:
        unsure = np.flatnonzero(high == np.uint16(edge >> 8))
        if len(unsure):
            mask[unsure] = _part(seed, at, model, n, np.uint8)[unsure] < (edge & 255)
    return torch.from_numpy(mask).view(like.shape)


def sequence(at: At, model: int, kind: type) -> str:
    """The name of a tensor's sequence of numbers of this width."""
    return f"{at.name}/{model}/{kind.__name__}"


def _part(seed: int, at: At, model: int, count: int, kind: type) -> np.ndarray:
    """Numbers at.start .. at.start + count of a tensor's sequence of this width."""
    each = 8 // np.dtype(kind).itemsize
    first = at.start // each
    words = _Words(seed, sequence(at, model, kind)).words(first, -(-(at.start + count) // each) - first)
    return words.astype("<u8", copy=False).view(kind)[at.start - first * each :][:count]


def place(at: At, scope: str = "tensor") -> int:
    """The index of the piece's first element in its tensor, or in the model."""
    return at.start + (at.offset if scope == "model" else 0)


def magnitude_cuts(ranks: Callable[..., tuple[tuple[int, ...], ...]], scope: Scope) -> Survey:
    """Finds each task vector's largest magnitudes: cuts after ranks(numel, config) elements, equal ones by index."""

    def begin(seen: Any, numel: int, config: Mapping[str, Any]) -> select.Finds:
        return select.start(ranks(numel, config), numel, sampled=True) if seen is None else seen

    def look(
        tensors: Sequence[Tensor], base: Tensor | None, *, at: At, seen: Any, numel: int, **config: Any
    ) -> dict[str, Any]:
        values = select.falling(deltas(tensors, base).flatten(1))
        first = place(at, scope(config) or "tensor")
        return {"counts": select.count(begin(seen, numel, config), values, first, numel)}

    def join(total: dict[str, Any], seen: Any, *, numel: int, **config: Any) -> tuple[Any, bool]:
        return select.step(begin(seen, numel, config), total["counts"], numel)

    def skip(seen: Any, at: At, count: int, config: Mapping[str, Any]) -> bool:
        first = place(at, scope(config) or "tensor")
        return seen is not None and select.idle(seen, first, first + count)

    def every(seen: Any, numel: int, config: Mapping[str, Any]) -> int:
        return select.every(begin(seen, numel, config))

    def steps(seen: Any, numel: int, config: Mapping[str, Any]) -> Count:
        return Count(begin(seen, numel, config), scope(config) or "tensor")

    return Survey(look, join, scope, skip, every, steps)


def trim(tau: Tensor, finds: Any, at: At, scope: str, which: int = 0, out: Tensor | None = None) -> Tensor:
    """tau (T, *shape), with zeros where it lies behind the cut: top() times tau, at a fifth of the cost.

    out: where it goes, which is tau itself if not told.
    """
    first, out = place(at, scope), tau if out is None else out
    for x, y, row in zip(tau.flatten(1), out.flatten(1), finds, strict=True):
        cut = row[which].cut
        if cut.key >= 0:  # zero's key: all others are kept
            y.copy_(x)
        elif first < cut.index < first + x.numel():
            torch.mul(x, cut.holds(select.falling(x.clone()), first), out=y)
        elif cut.key == select.NOTHING:
            y.zero_()
        else:
            bits = ~cut.key if cut.index <= first else ~cut.key - 1  # the largest magnitude that goes
            torch.hardshrink(x, lambd=select.bits(bits), out=y) if bits >= 0 else y.copy_(x)
    return out


def top(finds: Any, tau: Tensor, at: At, scope: str, which: int = 0) -> Tensor:
    """bool (T, *shape): the elements before the cut."""
    values = select.falling(tau.flatten(1).clone())
    return select.held(finds, values, place(at, scope), which).view(tau.shape)


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
