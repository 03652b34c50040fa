"""AdaMerging: coefficients of the task vectors, by task or tensor, that make the merged model sure of its answers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..call.declare import method
from ..learning.blend import Forward, blend, check_data, entropy, logits, minimise
from ..maths.parts import scaled
from ..registry import At, Coefficients
from ..statistics import Statistics


def learn(
    model: nn.Module,
    models: Sequence[Any],
    base: Any,
    data: Sequence[Iterable[Any]],
    *,
    by: Literal["tensor", "task"] = "tensor",
    forward: Forward = logits,
    init: float = 0.3,
    steps: int = 500,
    lr: float = 1e-3,
    clip: tuple[float, float] | None = (0.0, 1.0),
) -> Statistics:
    """Coefficients (T,) for every tensor that lower the mean entropy of the merged model's answers, summed over tasks.

    data: batches WITHOUT labels, a list for each task, taken in turn. forward(call, batch, task): logits; task-specific
    heads go there. by="task": one coefficient a task, the same in every tensor. clip: coefficients are kept in it while
    they are used, as the authors do (their gradient vanishes outside); None: not. Adam, 500 steps of 1e-3 from 0.3.
    Memory: T + 1 models in float32. header["losses"]: the loss before each step.
    """
    whole = blend(model, models, base)
    batches = check_data(data, whole.count)
    names = list(whole.base) if by == "tensor" else [""]
    device = next(model.parameters()).device
    free = {n: torch.full((whole.count,), init, device=device) for n in names}

    def coefficients(name: str) -> Tensor:
        c = free[name if by == "tensor" else ""]
        return c if clip is None else c.clamp(*clip)

    def loss(step: int) -> Tensor:
        call = whole.call(whole.weighted(coefficients))
        scores = [forward(call, b[step % len(b)], t) for t, b in enumerate(batches)]
        return torch.stack([entropy(s) for s in scores]).sum()

    losses = minimise(free.values(), loss, steps=steps, lr=lr)
    found = {f"coefficients/{n}": coefficients(n).detach().cpu() for n in whole.base}
    return Statistics("coefficients", found, {"method": "adamerging", "by": by, "losses": losses})


@method(
    "adamerging",
    paper="AdaMerging: Adaptive Model Merging for Multi-Task Learning, arXiv 2310.02575",
    equation="theta_l = theta_0,l + sum_t lambda_t,l tau_t,l; lambda minimises sum_t H(f_theta(x_t)), eq. (5)",
    data="unlabeled",
    learn=learn,
    same=("official", "fusion-bench"),
)
def adamerging(tensors: Sequence[Tensor], base: Tensor, *, at: At, coefficients: Coefficients) -> Tensor:
    """coefficients: what adamerging.learn() found, or its file. A layer of the paper is a tensor here, as in its code.

    A tensor that the model does not learn (a buffer) stays the base's.
    """
    return scaled(tensors, base, at, coefficients)
