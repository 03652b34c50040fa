"""Bayesian model merging: RegMean with an anchor, another merge, as the prior mean of every linear layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import torch
from torch import Tensor

from ..call.declare import method
from ..maths.parts import combine
from ..registry import At, Beside, Positive, Share
from .regmean import shrunk, solve

Grams = Annotated[Any, Beside("gram", fewer=1)] | None


def guessed(tau: Tensor) -> Tensor:
    """The Gram matrix that a task vector lets guess: its rows are sums of inputs, so tau'tau; of mean diagonal 1."""
    g = tau.double().T @ tau.double()
    return g / g.diagonal().mean().clamp(min=1e-30)


@method(
    "bayesian",
    paper="Bayesian Model Merging, arXiv 2605.12843",
    equation="W = (sum_t w_t W_t G_t + p W_a) (sum_t w_t G_t + p I)^-1, W_a the anchor, p the prior's precision",
    models=(3, None),
    by=lambda config: "tensor",
)
def bayesian(
    tensors: Sequence[Tensor],
    base: Tensor,
    *,
    weights: Sequence[float],
    at: At,
    statistics: Grams = None,
    prior: Positive = 0.1,
    alpha: Share = 1.0,
) -> Tensor:
    """models: the experts, and last the anchor: the result of another method, task_arithmetic or wudi or tsv_m; its
    weight is not used. statistics: one file an expert with `gram`; without them Grams are guessed from the task vectors
    tau'tau (the paper's data-free variant). Tensors that are no matrices, or of which files lack a Gram: the anchor's.

    prior: the precision of the prior over that of the noise; large: the anchor itself. Here it is relative to the mean
    diagonal of the Grams' sum, so that one number suits all layers. The paper's outer level chooses it layer by layer
    by Bayesian optimisation on validation rows: `cw.merge.search` does, over groups of tensors.
    Source: arXiv 2605.12843 (its second version is called ReForge) by its abstract: regression on activations with the
    anchor as the prior's mean, in closed form, is the formula above. Its equations and code were not available: how it
    scales the prior and guesses Grams, and the assembly scale that it searches too, are unchecked; there is none here.
    Needs: whole matrices. Cost: one solve of (d_in, d_in) a matrix.
    """
    *experts, anchor = tensors
    known = statistics is None or all(s.has("gram", at.name) for s in statistics)
    if base.dim() != 2 or not known:
        return anchor.clone()
    if statistics is None:
        grams = [guessed(t - base) for t in experts]
    else:
        grams = [s.whole("gram", at.name, (t.shape[1],) * 2) for s, t in zip(statistics, experts, strict=True)]
    grams = [shrunk(w * g, alpha) for w, g in zip(weights, grams)]
    left = torch.stack(grams).sum(0)
    strength = prior * left.diagonal().mean()
    if strength == 0:
        return anchor.clone()
    away = combine([(t - anchor).double() @ g for t, g in zip(experts, grams)], [1.0] * len(grams))
    return anchor + solve(left + strength * torch.eye(len(left), dtype=torch.float64), away).float()
