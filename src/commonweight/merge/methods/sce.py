"""SCE: select where the models differ most, weigh models by their squares, erase what disagrees in sign."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from .. import select
from ..parts import column, combine, deltas, place
from ..registry import At, Share, Survey, method


def _variance_keys(tau: Tensor) -> Tensor:
    first, *others = tau.flatten(1)
    mean = combine(tau.flatten(1), [1 / len(tau)] * len(tau))
    variance, same = (first - mean).square_(), torch.ones_like(first, dtype=torch.bool)
    for x in others:
        variance += (x - mean).square_()
        same &= x == first
    return select.magnitude_key(variance.masked_fill_(same, 0))  # equal values have none, whatever the mean's rounding


def _look(tensors: Sequence[Tensor], base: Tensor, *, at: At, seen: Any, **config: Any) -> dict[str, Tensor]:
    tau = deltas(tensors, base)
    keys = _variance_keys(tau)
    if seen is None:
        return {"nonzero": (keys != select.magnitude_key(torch.zeros(1))).sum()}
    if "mask" not in seen:
        return {"counts": select.count(seen["finds"], keys[None], place(at))}
    kept = tau.flatten(1) * _mask(seen, tau, at)
    return {"squares": kept.double().square().sum(1)}


def _join(total: dict[str, Tensor], seen: Any, *, numel: int, **config: Any) -> tuple[Any, bool]:
    share = config["select_topk"]
    if seen is None:
        rank = int(int(total["nonzero"]) * share)
        finds = select.start(((rank,),))
        return ({"finds": finds} if share < 1 else {"finds": None, "mask": True}), False
    if "mask" not in seen:
        finds, done = select.step(seen["finds"], total["counts"], numel)
        return ({"finds": finds, "mask": True} if done else {"finds": finds}), False
    return {**seen, "squares": total["squares"], "numel": numel}, True


def _mask(seen: Mapping[str, Any], tau: Tensor, at: At) -> Tensor:
    if seen["finds"] is None:
        return torch.ones_like(tau[0]).flatten()
    keys = _variance_keys(tau)
    return select.held(seen["finds"], keys[None], place(at))[0].float()


@method(
    "sce",
    paper="FuseChat: Knowledge Fusion of Chat Models, arXiv 2408.07990",
    equation=(
        "eta_t = |S_t|^2 / sum_j |S_j|^2, S the top-variance entries; "
        "theta_0 + sum eta_t tau_t [agree] / sum eta_t [agree]"
    ),
    survey=Survey(_look, _join, lambda config: "tensor"),
    same=("official",),
)
def sce(
    tensors: Sequence[Tensor],
    base: Tensor,
    *,
    at: At,
    seen: Any,
    select_topk: Share = 1.0,
    compat: Literal["mergekit"] | None = None,
) -> Tensor:
    """Weights come from the data: no weights are taken. Variance over models decides which entries are selected.

    Default and "official" (the authors' code): the selection shapes the weights eta only, every entry is merged;
    compat="mergekit": what is not selected is not merged either. The two differ for select_topk below 1.
    """
    tau, squares = deltas(tensors, base), seen["squares"]
    mean = squares / seen["numel"]
    eta = mean / mean.sum() if mean.sum().abs() >= 1e-6 else torch.full_like(mean, 1 / len(mean))
    if compat == "mergekit":
        tau = tau * _mask(seen, tau, at).view_as(tau[0])
    sign = torch.where(tau.sum(0) >= 0, 1.0, -1.0)
    parts = column(eta.tolist(), tau) * (tau.sign() == sign)
    return base + (tau * parts).sum(0) / parts.sum(0).clamp(min=1e-6)
