"""Fisher merging: every parameter averaged by how much each model's predictions depend on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from ..call.declare import method
from ..maths.parts import sums
from ..registry import At, Beside, Range

Fishers = Annotated[Any, Beside("fisher")]


def _read(statistics: Any, at: At, tensors: Sequence[Tensor]) -> Tensor:
    return torch.stack([s.piece("fisher", at, t) for s, t in zip(statistics, tensors, strict=True)])


def _look(tensors: Sequence[Tensor], base: None, *, at: At, statistics: Any, **config: Any) -> dict[str, Tensor]:
    return {"squares": _read(statistics, at, tensors).double().flatten(1).square().sum(1)}


def _scope(config: Mapping[str, Any]) -> Literal["model"] | None:
    return "model" if config["normalize"] or (config["normalize"] is None and config["compat"]) else None


@method(
    "fisher",
    paper="Merging Models with Fisher-Weighted Averaging, arXiv 2111.09832",
    equation="eq. (4): theta = sum_t w_t F_t theta_t / sum_t w_t F_t, F_t the diagonal Fisher information",
    base="none",
    weight="1/T",
    data="statistics",
    survey=sums(_look, _scope),
    normalises=lambda config: True,
    same=("official",),
)
def fisher(
    tensors: Sequence[Tensor],
    base: None,
    *,
    weights: Sequence[float],
    at: At,
    seen: Any,
    statistics: Fishers,
    floor: Annotated[float, Range(gt=0)] = 1e-6,
    favor_first: bool = True,
    normalize: bool | None = None,
    compat: Literal["fusion-bench"] | None = None,
) -> Tensor:
    """statistics: one file a model with `fisher` of every tensor. weights: the paper's lambda.

    favor_first: Fisher values of the first model, the target, are at least `floor`, so that a parameter on which no
    model depends stays the target's, as in the authors' code; False: those of all models are, and it is their mean.
    normalize: each model's Fisher is divided by its length over the whole model, so that none dominates by its scale.
    compat="fusion-bench" (and MergeLM): normalised by ||F_t|| + floor, and `floor` is added to all in place of a bound.
    """
    f = _read(statistics, at, tensors)
    w = torch.tensor(weights, dtype=torch.float64)
    if seen is not None:
        nu = 1 / (seen["squares"].sqrt() + floor)
        w = w * nu / nu.sum()
    if compat == "fusion-bench":
        f = f + floor
    elif favor_first:
        f = torch.cat([f[:1].clamp(min=floor), f[1:]])
    else:
        f = f.clamp(min=floor)
    parts = f.double() * w.view(-1, *[1] * (f.dim() - 1))
    return ((parts * torch.stack(list(tensors))).sum(0) / parts.sum(0)).float()
