"""OPCM: models merged one after the other, each without what lies along the earlier ones' main directions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from ..call.declare import method
from ..maths.parts import deltas, rank
from ..registry import Share, Survey


def clean(before: Tensor, tau: Tensor, alpha: float, compat: str | None) -> Tensor:
    """tau without its part among the first directions of what is merged already, nor what is along any of them."""
    u, s, vh = torch.linalg.svd(before.double(), full_matrices=True)
    inside = u.T @ tau.double() @ vh.T
    share = s.cumsum(0) / s.sum().clamp(min=1e-30)
    first = int((share > alpha).float().argmax())
    inside[:first, :first] = 0
    if compat != "official":
        inside.diagonal()[: rank(s)] = 0
    return (u @ inside @ vh).float()


def chain(tau: Tensor, seen: Any, upto: int, alpha: float, compat: str | None) -> Tensor:
    """The task vector after model `upto`, brought to the mean length after every model whose sum has a known size."""
    merged, last = tau[0], 1.0
    for i in range(1, upto + 1):
        new = clean(merged, tau[i], alpha, compat) if tau[i].dim() == 2 else tau[i]
        merged = last * merged + new
        if i < len(seen["sizes"]) + 1:
            last = seen["sizes"][i - 1] / seen["means"][i] if seen["means"][i] else 0.0
            merged = merged / last if last else merged
    return merged


def _look(
    tensors: Sequence[Tensor], base: Tensor, *, seen: Any, alpha: float, compat: Any, **config: Any
) -> dict[str, Tensor]:
    tau = deltas(tensors, base)
    if seen is None:
        return {"squares": tau.flatten(1).double().square().sum(1)}
    return {"squares": chain(tau, seen, len(seen["sizes"]) + 1, alpha, compat).double().square().sum()}


def _join(total: dict[str, Tensor], seen: Any, **config: Any) -> tuple[Any, bool]:
    norms = total["squares"].sqrt()
    if seen is None:
        means = (norms.cumsum(0) / torch.arange(1, len(norms) + 1)).tolist()
        return {"means": means, "sizes": ()}, len(norms) == 1
    sizes = (*seen["sizes"], norms.item())
    return {**seen, "sizes": sizes}, len(sizes) == len(seen["means"]) - 1


@method(
    "opcm",
    paper=(
        "Merging Models on the Fly Without Retraining: A Sequential Approach to Scalable Continual "
        "Model Merging, arXiv 2501.09522"
    ),
    equation=(
        "tau <- (l tau + P(tau_t)) / l', P clears U'tau_t V in the first r x r and on the diagonal; "
        "|tau| = mean of |tau_1..t|"
    ),
    by=lambda config: "tensor",
    survey=Survey(_look, _join, lambda config: "model"),
    same=("fusion-bench",),
)
def opcm(
    tensors: Sequence[Tensor],
    base: Tensor,
    *,
    seen: Any,
    alpha: Share = 0.5,
    compat: Literal["official"] | None = None,
) -> Tensor:
    """Sequential: the order of the models matters. r is where the singular values' running sum passes the share alpha.

    Every matrix is cleaned (the authors clean linear layers only: leave embeddings out to do so); other tensors are
    summed. Where what is merged already has a lower rank, as LoRA updates have, the diagonal is its own directions'.
    compat="official": the authors' code leaves the diagonal, since it clears a copy of it. Takes no weights.
    Needs: whole matrices, and T - 1 passes for the whole model's length. Cost: T (T - 1) / 2 SVDs a matrix and pass.
    """
    return base + chain(deltas(tensors, base), seen, len(tensors) - 1, alpha, compat)
