"""aTLAS: one learned scale for every tensor of every task vector, for a target task of few labeled rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..call.declare import method
from ..learning.blend import Call, blend, check_data, cross_entropy, minimise
from ..maths.parts import scaled
from ..registry import At, Coefficients
from ..statistics import Statistics


def learn(
    model: nn.Module,
    models: Sequence[Any],
    base: Any,
    data: Sequence[Iterable[Any]],
    *,
    loss: Callable[[Call, Any, int], Tensor] = cross_entropy,
    init: float = 0.0,
    steps: int = 300,
    lr: float = 1e-1,
    weight_decay: float = 1e-1,
) -> Statistics:
    """Scales (T,) of every tensor that lower the loss on the target's rows; the task vectors may be of any tasks.

    data: lists of batches WITH labels, one list for each target (usually one), their losses summed; loss(call, batch,
    target) -> (). AdamW from 0, 1e-1 and weight decay 1e-1, as the authors train. Trained numbers: T a tensor.
    Memory: T + 1 models in float32. header["losses"]: the loss before each step.
    """
    whole = blend(model, models, base)
    batches = check_data(data, len(data) or 1)
    free = {n: torch.full((whole.count,), init, device=b.device) for n, b in whole.base.items()}

    def objective(step: int) -> Tensor:
        call = whole.call(whole.weighted(free.__getitem__))
        return torch.stack([loss(call, b[step % len(b)], t) for t, b in enumerate(batches)]).sum()

    losses = minimise(free.values(), objective, steps=steps, lr=lr, weight_decay=weight_decay)
    found = {f"coefficients/{n}": c.detach().cpu() for n, c in free.items()}
    return Statistics("coefficients", found, {"method": "atlas", "losses": losses})


@method(
    "atlas",
    paper="Knowledge Composition using Task Vectors with Learned Anisotropic Scaling, arXiv 2407.02880",
    equation="theta = theta_0 + sum_t Lambda_t tau_t, Lambda_t block-diagonal: one scale a tensor (eq. 3)",
    data="labeled",
    learn=learn,
)
def atlas(tensors: Sequence[Tensor], base: Tensor, *, at: At, coefficients: Coefficients) -> Tensor:
    """coefficients: what atlas.learn() found, or its file. A parameter block of the paper is a tensor here.

    A tensor that the model does not learn (a buffer) stays the base's.
    """
    return scaled(tensors, base, at, coefficients)
