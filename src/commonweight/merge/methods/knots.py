"""KnOTS: task matrices are brought into one basis before they are merged there; made for LoRA updates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from ..call.declare import method
from ..maths import parts, select
from ..registry import At, Density, Range, Survey

Compat = Literal["official"] | None


def aligned(tau: Tensor, compat: Compat) -> tuple[Tensor, Tensor]:
    """(basis (d_out, k) float64, right factors (T, k, d_in)) of task matrices (T, d_out, d_in), of rank k together.

    A column that a task did not change is zero in its factor: what an SVD has there is rounding, and would vote.
    """
    u, s, vh = torch.linalg.svd(torch.cat(list(tau), 1).double(), full_matrices=False)
    k = parts.rank(s)
    right = torch.stack(vh[:k].split(tau.shape[2], dim=1)) * (tau != 0).any(1, keepdim=True)
    if compat == "official":
        return u[:, :k], (s[:k, None] * right).float()
    return u[:, :k] * s[:k], right.float()


def scope(config: Mapping[str, Any]) -> Literal["model"] | None:
    return "model" if config["compat"] == "official" and config["inner"] == "ties" else None


def _look(tensors: Sequence[Tensor], base: Tensor, *, at: At, seen: Any, numel: int, **config: Any) -> dict[str, Any]:
    """The right factors of all matrices, and what is no matrix as it is, are one vector a task: its length, its cut,
    the sum of its signs."""
    tau = parts.deltas(tensors, base)
    x = aligned(tau, "official")[1] if base.dim() == 2 else tau
    if seen is None:
        return {"numel": torch.tensor(x[0].numel())}
    if isinstance(seen, dict):
        return {"sign": parts.trim(x, seen["finds"], at, "model").sum(0).sign().double().sum()}
    return {"counts": select.count(seen, select.falling(x.flatten(1)), parts.place(at, "model"), numel)}


def _join(total: dict[str, Any], seen: Any, *, numel: int, **config: Any) -> tuple[Any, bool]:
    if seen is None:
        n = int(total["numel"])
        return select.start([(min(n, int(d * n) + 1),) for d in config["density"]], numel), False
    if isinstance(seen, dict):
        return {**seen, "zero": int(total["sign"].sign())}, True
    finds, done = select.step(seen, total["counts"], numel)
    return ({"finds": finds} if done else finds), False


@method(
    "knots",
    paper="Model merging with SVD to tie the KnOTS, arXiv 2410.19735",
    equation="[tau_1 ... tau_T] = U S [V_1 ... V_T]; theta = theta_0 + scale U S merge(V_1, ..., V_T)",
    by=lambda config: "tensor",
    survey=Survey(_look, _join, scope),
    normalises=lambda config: config["inner"] == "linear",
)
def knots(
    tensors: Sequence[Tensor],
    base: Tensor,
    *,
    weights: Sequence[float],
    at: At,
    seen: Any,
    density: Density = 0.2,
    inner: Literal["ties", "linear"] = "ties",
    scale: Annotated[float, Range()] = 1.0,
    compat: Compat = None,
) -> Tensor:
    """Merges the right factors in the shared basis U S; tensors that are no matrices are merged as they are.

    inner: TIES (the largest `density` of each V_t, equal magnitudes by index, sign election, weighted mean), or the
    weighted mean, which is that of the task vectors. Directions that the task matrices do not have are dropped: LoRA
    updates leave most of the basis empty. A column that a task did not change has no vote.
    compat="official": the authors' code, as their configurations call it: TIES of S V_t in the basis U, trimmed over
    all tensors together, with one entry more and the whole's sign where a sum is zero. It drops directions below 1e-5,
    whatever the task matrices' size, and has no weights: they scale the mean's parts.
    Needs: whole matrices. Cost: one SVD of (d_out, T d_in) a matrix; official: one a pass, about six.
    """
    tau = parts.deltas(tensors, base)
    basis, x = aligned(tau, compat) if base.dim() == 2 else (None, tau)
    if inner == "linear":
        merged = parts.combine(x, weights) / sum(weights)
    elif compat == "official":
        merged = parts.agreeing(parts.trim(x, seen["finds"], at, "model"), weights, zero=seen["zero"])
    else:
        merged = parts.agreeing(_top(x, density), weights)
    return base + scale * (merged if basis is None else (basis @ merged.double()).float())


def _top(x: Tensor, density: Any) -> Tensor:
    """Of each of x (T, ...), its largest."""
    kept = [t * (parts.ranks_in_rows(t.flatten()) < max(1, int(d * t.numel()))).view_as(t) for t, d in zip(x, density)]
    return torch.stack(kept)
