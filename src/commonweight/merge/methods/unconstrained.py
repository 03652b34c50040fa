"""Unconstrained merging, models of one architecture: coefficients of every block found by an evaluation alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..call.declare import method
from ..maths.parts import scaled
from ..registry import At, Coefficients
from ..sources.model import open_source
from ..statistics import Statistics


def learn(
    evaluate: Callable[[dict[str, Tensor]], float],
    models: Sequence[Any],
    base: Any,
    *,
    groups: int = 4,
    limits: tuple[float, float] = (0.0, 1.0),
    **how: Any,
) -> Statistics:
    """Coefficients (T,) of every tensor, the same within a run of blocks, with the highest evaluate(state dict).

    No gradient is needed: evaluate may be an accuracy on validation rows. groups: runs of blocks, besides which the
    tensors outside of blocks have their own coefficients; as many as blocks is the paper's layer-wise form. how: as in
    `search.tune` (budget, log, seed, ...). header["scores"]: every evaluation.
    """
    from ..learning import search

    where = search.blocks(open_source(base, "base").shapes, groups)
    box = search.merge_space(len(models), {"weights": limits}, groups=groups)

    def coefficients(point: search.Point) -> dict[str, Tensor]:
        rows = {g: torch.tensor([point[f"{g}.weights.{i}"] for i in range(len(models))]) for g in set(where.values())}
        return {f"coefficients/{n}": rows[g] for n, g in where.items()}

    def score(point: search.Point) -> float:
        return evaluate(unconstrained(models, base, coefficients=coefficients(point)))

    found = search.tune(score, box, **how)
    header = {"method": "unconstrained", "scores": [s for _, s in found.history]}
    return Statistics("coefficients", coefficients(found.best), header)


@method(
    "unconstrained",
    paper="Unconstrained Model Merging for Enhanced LLM Reasoning, arXiv 2410.13699",
    equation="theta_l = theta_0,l + sum_t lambda_t,l tau_t,l; lambda by CMA-ES on a validation score",
    data="labeled",
    learn=learn,
)
def unconstrained(tensors: Sequence[Tensor], base: Tensor, *, at: At, coefficients: Coefficients) -> Tensor:
    """coefficients: what unconstrained.learn() found, or its file.

    Differs: the paper searches layer by layer over TIES and DARE too: `search.tune_merge`, with `groups`.
    Its part for models of different architectures trains on their token distributions and is no merge of weights; it is
    not here.
    """
    return scaled(tensors, base, at, coefficients)
