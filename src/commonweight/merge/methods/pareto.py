"""Pareto manifold learning: members whose convex combinations are a continuous front of trade-offs between tasks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..call.declare import method
from ..learning.blend import Call, blend, check_data, cross_entropy, minimise
from ..maths.parts import combine


def learn(
    model: nn.Module,
    models: Sequence[Any],
    base: Any,
    data: Sequence[Iterable[Any]],
    *,
    loss: Callable[[Call, Any, int], Tensor] = cross_entropy,
    concentration: float = 1.0,
    draws: int = 1,
    steps: int = 300,
    lr: float = 1e-3,
    seed: int = 0,
) -> list[dict[str, Tensor]]:
    """The members, one state dict a task, trained so that every convex combination serves its own mixture of tasks.

    models: where the members start, one a task (copies of one model, or the fine-tuned ones). Each step draws
    alpha ~ Dirichlet(concentration), `draws` times, and goes down sum_t alpha_t L_t(theta(alpha)), algorithm 1.
    data: batches WITH labels, a list for each task. base gives tensors the model does not learn. Differs: without the
    paper's regularisers (multi-forward ordering, member-wise distance). Memory: 5 T models in float32.
    """
    whole = blend(model, models, base)
    batches = check_data(data, whole.count)
    draw = np.random.default_rng(seed)
    device = next(iter(whole.tau.values())).device

    def objective(step: int) -> Tensor:
        out = []
        for _ in range(draws):
            alpha = torch.tensor(draw.dirichlet([concentration] * whole.count), dtype=torch.float32, device=device)
            call = whole.call(whole.weighted(lambda name, a=alpha: a))
            parts = [loss(call, b[step % len(b)], t) for t, b in enumerate(batches)]
            out.append(alpha @ torch.stack(parts))
        return torch.stack(out).mean()

    minimise(whole.tau.values(), objective, steps=steps, lr=lr)
    return [{n: (b + whole.tau[n][t]).cpu() for n, b in whole.base.items()} for t in range(whole.count)]


@method(
    "pareto",
    paper="Pareto Manifold Learning: Tackling multiple tasks via ensembles of single-task models, arXiv 2210.09759",
    equation="theta(alpha) = sum_t alpha_t theta_t, alpha on the simplex: the preference among tasks",
    base="none",
    weight="1/T",
    data="labeled",
    learn=learn,
    normalises=lambda config: True,
)
def pareto(tensors: Sequence[Tensor], base: None, *, weights: Sequence[float]) -> Tensor:
    """weights: the preference alpha, divided by its sum. models: the members that pareto.learn() trained; of models
    trained one by one this is their average.
    """
    return combine(tensors, [w / sum(weights) for w in weights])
