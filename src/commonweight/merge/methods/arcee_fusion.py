"""Arcee Fusion: the other model's numbers where its change matters most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from ..call.declare import method
from ..maths import select
from ..registry import At, Survey


def importance(tensor: Tensor, base: Tensor) -> Tensor:
    """|change|, times the divergence of the softmaxes over the row."""
    p, q = tensor.softmax(-1) + 1e-8, base.softmax(-1) + 1e-8
    return (tensor - base).abs() * (p * (p / q).log()).sum(-1, keepdim=True)


def _ranks(numel: int) -> tuple[tuple[int, ...], ...]:
    return (tuple(int(q * (numel - 1)) + 1 for q in (0.25, 0.5, 0.75)),)


def _begin(seen: Any, numel: int) -> select.Finds:
    return select.start(_ranks(numel), numel, exact=True, sampled=True) if seen is None else seen


def _every(seen: Any, numel: int, config: Mapping[str, Any]) -> int:
    return select.every(_begin(seen, numel))


def _look(tensors: Sequence[Tensor], base: Tensor, *, at: At, seen: Any, numel: int, **config: Any) -> dict[str, Any]:
    return {"counts": select.count(_begin(seen, numel), importance(tensors[0], base).view(1, -1), at.start, numel)}


def _join(total: dict[str, Any], seen: Any, *, numel: int, **config: Any) -> tuple[Any, bool]:
    finds, done = select.step(_begin(seen, numel), total["counts"], numel)
    return (tuple(f.value for f in finds[0]), True) if done else (finds, False)


@method(
    "arcee_fusion",
    paper="mergekit, 'Arcee Fusion' (no paper)",
    equation="theta = theta_0 + [s >= median(s) + 1.5 (q3 - q1)] tau, s = |tau| KL(softmax theta | softmax theta_0)",
    models=(1, 1),
    by=lambda config: "row",
    survey=Survey(_look, _join, lambda config: "tensor", every=_every),
    same=("mergekit",),
)
def arcee_fusion(tensors: Sequence[Tensor], base: Tensor, *, seen: Any) -> Tensor:
    """One model's outstanding changes, onto the base. Quartiles are of the whole tensor.

    Differs: mergekit estimates them from a random million of elements in tensors that have more.
    """
    low, median, high = seen
    return base + (tensors[0] - base) * (importance(tensors[0], base) >= median + 1.5 * (high - low))
