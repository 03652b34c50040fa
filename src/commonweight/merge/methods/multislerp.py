"""Multi-SLERP: several models on one sphere, through the tangent space at their mean."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from ...core import CommonweightError
from ..call.declare import method
from ..maths.parts import combine, deltas, gram
from ..registry import At, Positive


@method(
    "multislerp",
    paper="mergekit, 'Multi-SLERP' (blog post of C. Goddard, no paper)",
    equation=(
        "theta = theta_0 + (sum_t w_t |tau_t|) exp_m(sum_t w_t (u_t - <u_t, m> m)), u_t = tau_t / "
        "|tau_t|, m = mean direction"
    ),
    base="optional",
    survey=gram(),
    normalises=lambda config: config["normalize_weights"],
)
def multislerp(
    tensors: Sequence[Tensor],
    base: Tensor | None,
    *,
    weights: Sequence[float],
    at: At,
    seen: Any,
    normalize_weights: bool = True,
    eps: Positive = 1e-8,
    compat: Literal["mergekit"] | None = None,
) -> Tensor:
    """Barycentric interpolation on the sphere, tensor by tensor, on task vectors where there is a base.

    The result lies in the span of the task vectors, so that their inner products give its coefficients.
    Where the weighted directions cancel, as four numbers of either sign can, there is no mean direction: the weighted
    sum is taken. mergekit does so with two models; with more compat="mergekit" raises CommonweightError as it does.
    """
    x = deltas(tensors, base)
    if len(x) == 1:
        return tensors[0].clone()
    w = torch.tensor(weights, dtype=torch.float64)
    w = w / w.sum() if normalize_weights else w
    norms = seen["gram"].diagonal().sqrt()
    unit = 1 / (norms + eps)
    g = seen["gram"] * unit[:, None] * unit  # inner products of the unit vectors
    length = (w @ g @ w).clamp(min=0).sqrt()
    if length < eps:
        if compat and len(x) > 2 and norms.max() > 0:  # tensors that nobody changed stay as they are
            raise CommonweightError(
                f"{at.name}: the weighted directions of the {len(x)} models cancel; change the weights"
            )
        coefficients = w
    else:
        m = w / length
        tangent = w - (w * (g @ m)).sum() * m
        size = (tangent @ g @ tangent).clamp(min=0).sqrt() + eps
        coefficients = (m * size.cos() + tangent * (size.sin() / size)) * unit * (w * norms).sum()
    out = combine(x, coefficients)
    return out if base is None else base + out
