"""SCE: select where the models differ most, weigh models by their squares, erase what disagrees in sign."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from ..call.declare import method
from ..maths import select
from ..maths.parts import agreeing, combine, deltas, place
from ..registry import At, Share, Survey
from ..registry.steps import Merge, Squares


def _variances(tau: Tensor) -> Tensor:
    """(1, n), the largest first."""
    first, *others = tau.flatten(1)
    mean = combine(tau.flatten(1), [1 / len(tau)] * len(tau))
    variance, same = (first - mean).square_(), torch.ones_like(first, dtype=torch.bool)
    for x in others:
        variance += (x - mean).square_()
        same &= x == first
    return select.falling(variance.masked_fill_(same, 0))[None]  # equal values have none, whatever the mean's rounding


def _look(tensors: Sequence[Tensor], base: Tensor, *, at: At, seen: Any, numel: int, **config: Any) -> dict[str, Any]:
    tau = deltas(tensors, base)
    if seen is None and config["select_topk"] < 1:
        return {"nonzero": torch.count_nonzero(_variances(tau))}
    if seen is not None and "mask" not in seen:
        return {"counts": select.count(seen["finds"], _variances(tau), place(at), numel)}
    kept = tau.flatten(1) if seen is None else tau.flatten(1) * _mask(seen, tau, at)
    return {"squares": kept.square_().sum(1).double()}


def _join(total: dict[str, Any], seen: Any, *, numel: int, **config: Any) -> tuple[Any, bool]:
    share = config["select_topk"]
    if share >= 1:  # everything that differs is selected, and what does not differ has no variance to lose
        return {"squares": total["squares"], "numel": numel, "finds": None}, True
    if seen is None:
        finds = select.start(((int(int(total["nonzero"]) * share),),), numel, sampled=True)
        nothing = select.idle(finds, 0, numel)  # all or none are taken: no round would look at anything
        return ({"finds": finds, "mask": True} if nothing else {"finds": finds}), False
    if "mask" not in seen:
        finds, done = select.step(seen["finds"], total["counts"], numel)
        return ({"finds": finds, "mask": True} if done else {"finds": finds}), False
    return {**seen, "squares": total["squares"], "numel": numel}, True


def _skip(seen: Any, at: At, count: int, config: Mapping[str, Any]) -> bool:
    if seen is None or "mask" in seen or seen["finds"] is None:
        return False
    return select.idle(seen["finds"], place(at), place(at) + count)


def _every(seen: Any, numel: int, config: Mapping[str, Any]) -> int:
    return 1 if seen is None or "mask" in seen else select.every(seen["finds"])


def _mask(seen: Mapping[str, Any], tau: Tensor, at: At) -> Tensor:
    return select.held(seen["finds"], _variances(tau), place(at))[0].float()


def _eta(seen: Mapping[str, Any], compat: Literal["mergekit"] | None) -> list[float]:
    """The models' weights: their squares' shares."""
    mean = seen["squares"] / seen["numel"]
    known = mean.sum() >= 1e-6 if compat == "mergekit" else mean.sum() > 0
    return (mean / mean.sum() if known else torch.full_like(mean, 1 / len(mean))).tolist()


def _round(seen: Any, numel: int, config: Mapping[str, Any]) -> Squares | None:
    return Squares() if seen is None and config["select_topk"] >= 1 else None


def _steps(config: Mapping[str, Any], at: At, seen: Any) -> Merge | None:
    if config["compat"] == "mergekit" and seen["finds"] is not None:
        return None
    return Merge("elect", tuple(_eta(seen, config["compat"])), zero=1, rounded=2)


@method(
    "sce",
    paper="FuseChat: Knowledge Fusion of Chat Models, arXiv 2408.07990",
    equation=(
        "eta_t = |S_t|^2 / sum_j |S_j|^2, S the top-variance entries; "
        "theta_0 + sum eta_t tau_t [agree] / sum eta_t [agree]"
    ),
    survey=Survey(_look, _join, lambda config: "tensor", _skip, _every, _round),
    same=("official",),
    steps=_steps,
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
    compat="mergekit": what is not selected is not merged either (they differ for select_topk below 1), and the weights
    are equal where the squares' means add up to less than 1e-6: task vectors of a usual fine-tuning are as small.
    """
    tau = deltas(tensors, base)
    if compat == "mergekit" and seen["finds"] is not None:
        tau = tau * _mask(seen, tau, at).view_as(tau[0])
    # sign election with eta for weights; parameters whose sum is zero get a plus
    return base + agreeing(tau, _eta(seen, compat), zero=1)
