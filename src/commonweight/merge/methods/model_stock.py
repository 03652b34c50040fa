"""Model Stock: between the base and the average, as far as the angle between the task vectors says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from ..call.declare import method
from ..maths.parts import deltas, gram


@method(
    "model_stock",
    paper="Model Stock: All we need is just a few fine-tuned models, arXiv 2403.19522",
    equation=(
        "eq. (4): t = T cos / (1 + (T-1) cos), cos the mean cosine of pairs of task vectors; "
        "theta = t mean + (1-t) theta_0"
    ),
    models=(2, None),
    by=lambda config: "row" if config["filter_wise"] else "element",
    survey=gram(lambda config: None if config["filter_wise"] else "tensor"),
)
def model_stock(
    tensors: Sequence[Tensor],
    base: Tensor,
    *,
    seen: Any,
    filter_wise: bool = False,
    compat: Literal["mergekit"] | None = None,
) -> Tensor:
    """One ratio a tensor (the paper's layer-wise form), or one for each filter: a slice of the first dimension, a
    vector being one filter. compat="mergekit": filters of tensors with more than two dimensions are their last
    dimension, and a product of lengths below 1e-6 counts as 1e-6, so that cos goes to 0 where task vectors are short.

    A task vector of zero has cos 0 with the others. Where 1 + (T-1) cos is zero there is no finite ratio: the base
    stays.
    """
    tau = deltas(tensors, base)
    count = len(tau)
    if filter_wise:
        x = tau if tau.dim() == 2 or compat else tau.flatten(2)
        g = torch.einsum("a...i,b...i->ab...", x.double(), x.double())
    else:
        g = seen["gram"]
    norms = torch.stack([g[i, i] for i in range(count)]).sqrt()
    least = 1e-6 if compat == "mergekit" else 1e-300
    pairs = [
        (g[i, j] / (norms[i] * norms[j]).clamp(min=least)).clamp(-1, 1)
        for i in range(count)
        for j in range(i + 1, count)
    ]
    cosine = torch.stack(pairs).mean(0)
    below = 1 + (count - 1) * cosine
    lost = below.abs() < 1e-6
    t = torch.where(
        lost, torch.zeros_like(below), count * cosine / torch.where(lost, torch.ones_like(below), below)
    ).float()
    if t.dim():
        t = t.view(*t.shape, *[1] * (tau.dim() - 1 - t.dim()))
    return base + t * tau.mean(0)
