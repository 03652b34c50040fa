"""LiNeS: the sum of task vectors, scaled linearly with depth, so that shallow layers stay near the base."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any

import torch
from torch import Tensor

from ..call.declare import method
from ..maths.parts import combine, deltas, onto, shares, sums
from ..registry import At, Range
from ..registry.steps import Merge, Norms


def _rows(weights: Sequence[float]) -> tuple[tuple[float, ...], ...]:
    return (1.0,) * len(weights), tuple(weights)


def _look(tensors: Sequence[Tensor], base: Tensor, *, weights: Sequence[float], **config: Any) -> dict[str, Tensor]:
    tau = deltas(tensors, base)
    return {"l1": torch.stack([combine(tau, w).abs_().flatten().sum().double() for w in _rows(weights)])}


def _steps(seen: Any, numel: int, config: Mapping[str, Any]) -> Norms:
    return Norms(_rows(config["weights"]))


_survey = replace(sums(_look, lambda config: "model" if config["alpha"] is None else None), steps=_steps)


def check(config: Mapping[str, Any], n: int) -> str | None:
    if n == 1 and config["alpha"] is None:
        return "one model: alpha is missing; give alpha= (the scale of the first block) and beta=1-alpha"
    return None


def _factor(config: Mapping[str, Any], at: At, seen: Any) -> float:
    """alpha + beta l / (L - 1)."""
    alpha, beta = config["alpha"], config["beta"]
    first: float = 1 / len(config["weights"]) if alpha is None else alpha
    if alpha is None and seen["l1"][1]:
        first *= (seen["l1"][0] / seen["l1"][1]).item()
    block, blocks = at.depth or (0, 1)
    return first + (beta * block / (blocks - 1) if blocks > 1 else 0.0)


@method(
    "lines",
    paper="LiNeS: Post-training Layer Scaling Prevents Forgetting and Enhances Model Merging, arXiv 2410.17146",
    equation="tau^l <- (alpha + beta l / (L - 1)) tau^l, l = 0..L-1; alpha = |sum tau|_1 / (T |tau_merged|_1)",
    survey=_survey,
    check=check,
    steps=lambda config, at, seen: Merge("onto", shares(config["weights"], _factor(config, at, seen))),
)
def lines(
    tensors: Sequence[Tensor],
    base: Tensor,
    *,
    weights: Sequence[float],
    at: At,
    seen: Any,
    alpha: Annotated[float, Range(ge=0)] | None = None,
    beta: Annotated[float, Range(ge=0)] = 1.0,
) -> Tensor:
    """theta_0 + (alpha + beta l / (L - 1)) sum_t w_t tau_t; tensors outside of numbered blocks by alpha alone.

    A block's number is the first number that stands alone between the dots of the name. alpha none: from L1 norms of
    the whole model (1/T for equal weights of 1). For another method's result merge that one model: lines([merged],
    base, alpha=...).
    """
    factor = _factor({"weights": weights, "alpha": alpha, "beta": beta}, at, seen)
    return onto(base, deltas(tensors, base), shares(weights, factor))
