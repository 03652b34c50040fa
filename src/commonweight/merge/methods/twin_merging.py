"""Twin-Merging: a shared model and, compressed, what each task has beside it, mixed by a router's weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from torch import Tensor

from ..call.declare import method
from ..maths.parts import deltas
from ..registry import Count, Range


@method(
    "twin_merging",
    paper="Twin-Merging: Dynamic Integration of Modular Expertise in Model Merging, arXiv 2406.15479",
    equation=(
        "theta_S = theta_0 + scale sum tau_t; v_t = svd_r(theta_t - theta_S); theta(x) = theta_S + sum_t w_t(x) v_t"
    ),
    weight="1/T",
    by=lambda config: "tensor",
)
def twin_merging(
    tensors: Sequence[Tensor],
    base: Tensor,
    *,
    weights: Sequence[float],
    scale: Annotated[float, Range()] = 0.29,
    mask_rate: Annotated[float, Range(ge=0, lt=1)] = 0.9,
    rank: Count | None = None,
) -> Tensor:
    """The model for one setting of the router: weights are its outputs (the paper's softmax; 1/T each if not given).

    mask_rate: share of singular directions dropped from each exclusive part, rank int((1 - mask_rate) min(d_out,
    d_in)), at least 1; or `rank` itself (8 in the paper's generative runs). Tensors that are no matrices keep their
    whole part. Leave heads out: the authors merge neither classifiers nor their biases. Cost: T SVDs a matrix.
    Source: arXiv 2406.15479 and the authors' code (run_twin_vector with the strategy "svd"), which as here takes what a
    model has beside the shared one from the weights themselves; there a rank may come out as 0, here it is at least 1.
    """
    shared = base + scale * deltas(tensors, base).sum(0)
    out = shared.clone()
    for w, t in zip(weights, tensors):
        part = t - shared
        if base.dim() == 2:
            r = rank or max(1, int((1 - mask_rate) * min(base.shape) + 1e-9))
            u, s, vh = torch.linalg.svd(part.double(), full_matrices=False)
            part = ((u[:, :r] * s[:r]) @ vh[:r]).float()
        out += w * part
    return out
