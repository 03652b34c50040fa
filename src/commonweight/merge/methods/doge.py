"""DOGE: a change common to all task vectors, found by gradient steps outside of the subspace that the tasks share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from ..call.declare import method
from ..maths import parts, select
from ..registry import At, Count, Positive, Range, Survey


def _merges(at: At) -> bool:
    return len(at.shape) == 2


def shared(tau: Tensor, subspace: float) -> Tensor:
    """(d_out, k) float64, orthonormal: the main left directions of all tasks' own main left directions.

    k: the share 1 / subspace of min(d_out, d_in), or, where a task vector has a lower rank than its part of that, of
    the directions that there are. All of them would leave the gradient nothing but its rounding, which Adam enlarges.
    """
    r = min(tau.shape[1:])
    found = [torch.linalg.svd(t.double(), full_matrices=False) for t in tau]
    ranks = [min(r // len(tau), parts.rank(f.S)) for f in found]
    u, s, _ = torch.linalg.svd(torch.cat([f.U[:, :n] for f, n in zip(found, ranks)], 1), full_matrices=False)
    there = r if min(ranks) == r // len(tau) else parts.rank(s)
    return u[:, : int(there / subspace)]


def adapt(tau: Tensor, rates: Tensor, basis: Tensor, steps: int, lr: float) -> Tensor:
    """delta (d_out, d_in): Adam on sum_t sum_rows <tau_t, sum_k rate_k (tau_k + delta) - tau_t>^2, its gradient freed
    of `basis`."""
    goal = torch.einsum("t,tij->ij", rates, tau)
    delta = torch.nn.Parameter(torch.zeros_like(goal))
    adam = torch.optim.Adam([delta], lr=lr)
    total = rates.sum()
    for _ in range(steps):
        merged = goal + total * delta.detach()
        rows = torch.stack([(t * (merged - t)).sum(1) for t in tau])
        gradient = 2 * total * sum(r[:, None] * t for r, t in zip(rows, tau))
        delta.grad = gradient - basis @ (basis.T @ gradient)
        adam.step()
    return delta.detach()


def _look(tensors: Sequence[Tensor], base: Tensor, *, at: At, seen: Any, numel: int, **config: Any) -> dict[str, Any]:
    if not _merges(at):
        return {}
    tau = parts.deltas(tensors, base).flatten(1)
    if seen is None:
        return {"numel": torch.tensor(tau.shape[1])}
    return {"counts": select.count(seen, select.falling(tau), parts.place(at, "model"), numel)}


def _join(total: dict[str, Any], seen: Any, *, numel: int, **config: Any) -> tuple[Any, bool]:
    if seen is None:
        n, more = int(total["numel"]), int(config["compat"] is not None)
        ranks = [(min(n, max(1, int(d * n) + more)),) for d in config["density"]]
        return select.start(ranks, n), False
    return select.step(seen, total["counts"], numel)


Compat = Literal["official", "fusion-bench"] | None
Densities = Annotated[float | Sequence[float], Range(gt=0, le=1, each=True)]


@method(
    "doge",
    paper="Modeling Multi-Task Model Merging as Adaptive Projective Gradient Descent, arXiv 2501.01230",
    equation="theta = theta_0 + sum_t rate_t,l m_t (tau_t + delta_l), rate_t,l = eta / |tau_t,l|, delta_l by steps of "
    "(I - P_l) gradient",
    by=lambda config: "tensor",
    survey=Survey(_look, _join, lambda config: "model"),
)
def doge(
    tensors: Sequence[Tensor],
    base: Tensor,
    *,
    at: At,
    seen: Any,
    eta: Positive = 0.07,
    subspace: Annotated[float, Range(ge=1)] = 6.0,
    density: Densities = 0.3,
    steps: Count = 400,
    lr: Positive = 1e-4,
    others: Literal["base", "mean"] = "base",
    compat: Compat = None,
) -> Tensor:
    """Any architecture: every matrix is merged; other tensors stay the base's, as in the authors' code, or take the
    mean of the task vectors (others="mean"). Takes no weights: the rates come from the task vectors' lengths.

    The loss compares row by row, as the authors' code does. P_l projects on min(d_out, d_in) / `subspace` directions
    that all tasks share (where task vectors have lower ranks, as LoRA updates: on this share of the directions that
    they have; the authors' code fills up with what rounding draws). m_t keeps the largest `density` of tau_t over all
    matrices; compat="official" (and "fusion-bench") keeps one entry more. Both merge only what their names call weights
    of an encoder, without embeddings and norms: leave out what should not be merged. Needs: whole matrices. Cost: T + 1
    SVDs a matrix, and 2 T passes over it a step.
    """
    tau = parts.deltas(tensors, base)
    if not _merges(at):
        return base + (tau.mean(0) if others == "mean" else 0.0)
    norms = tau.flatten(1).norm(dim=1)
    rates = torch.where(norms > 0, eta / norms.clamp(min=1e-30), torch.zeros_like(norms))
    delta = adapt(tau, rates, shared(tau, subspace).float(), steps, lr)
    mask = parts.top(seen, tau, at, "model")
    return base + torch.einsum("t,tij->ij", rates, (tau + delta) * mask)
