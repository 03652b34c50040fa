"""KnOTS: task matrices are brought into one basis before they are merged there; made for LoRA updates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from ..parts import agreeing, combine, deltas, ranks_in_rows
from ..registry import Density, Range, method


@method(
    "knots",
    paper="Model merging with SVD to tie the KnOTS, arXiv 2410.19735",
    equation="[tau_1 ... tau_T] = U S [V_1 ... V_T]; theta = theta_0 + scale U S merge(V_1, ..., V_T)",
    by=lambda config: "tensor",
)
def knots(
    tensors: Sequence[Tensor],
    base: Tensor,
    *,
    weights: Sequence[float],
    density: Density = 0.2,
    inner: Literal["ties", "linear"] = "ties",
    scale: Annotated[float, Range()] = 1.0,
) -> Tensor:
    """Merges the right factors in the shared basis U S; tensors that are no matrices are merged as they are.

    inner: TIES (the largest `density` of each V_t, equal magnitudes by index, sign election, weighted mean), or the
    weighted mean, which is that of the task vectors. Trims each matrix by itself; the authors' code trims over all of
    them. Directions below 1e-6 of the largest singular value are dropped: LoRA updates leave most of the basis empty.
    Needs: whole matrices. Cost: one SVD of (d_out, T d_in).
    """
    tau = deltas(tensors, base)
    if base.dim() != 2:
        return base + scale * _merge(tau, weights, density, inner)
    u, s, vh = torch.linalg.svd(torch.cat(list(tau), 1).double(), full_matrices=False)
    live = s > 1e-6 * s[0].clamp(min=1e-30)
    v = torch.stack(vh[live].split(base.shape[1], dim=1)).float()
    return base + scale * ((u[:, live] * s[live]) @ _merge(v, weights, density, inner).double()).float()


def _merge(x: Tensor, weights: Sequence[float], density: Any, inner: str) -> Tensor:
    if inner == "linear":
        return combine(x, weights) / (sum(weights) or 1.0)
    kept = [t * (ranks_in_rows(t.flatten()) < max(1, int(d * t.numel()))).view_as(t) for t, d in zip(x, density)]
    return agreeing(torch.stack(kept), weights)
