"""PCB: every parameter competes within its task and across tasks; the losers drop out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from .. import select
from ..parts import column, deltas, place
from ..registry import At, Density, Range, Survey, method

Variant = Literal["official", "nlp", "vision", "es"]
TAILS = {"official": 1e-4, "nlp": 0.01, "vision": 1e-4, "es": 1e-4}


def _clamped(tau: Tensor, bounds: Sequence[Sequence[float]]) -> tuple[Tensor, Tensor]:
    """(|tau| between its quantiles, the same from 0 to 1)."""
    low, high = column([b[0] for b in bounds], tau), column([b[1] for b in bounds], tau)
    a = tau.abs().clamp(low, high)
    return a, (a - low) / torch.where(high > low, high - low, torch.ones_like(high))


def _score(tau: Tensor, bounds: Any, variant: Variant) -> Tensor:
    """Intra- times inter-balancing (T, *shape)."""
    norm = _clamped(tau, bounds)[1]
    signed = tau.sign() * norm
    if variant == "vision":
        inter = (signed * signed.sum(0)).tanh()
    elif variant == "es":
        inter = torch.stack([(x * signed).tanh().sum(0) for x in signed])
    else:
        inter = (tau * tau.sum(0)).tanh()
    return (len(tau) * norm.square()).exp() * inter


def _look(
    tensors: Sequence[Tensor], base: Tensor, *, at: At, seen: Any, numel: int, **config: Any
) -> dict[str, Tensor]:
    tau = deltas(tensors, base)
    stage = _start(numel, config, len(tau)) if seen is None else seen
    x = tau.abs() if "bounds" not in stage else _score(tau, stage["bounds"], config["variant"])
    keys = select.key(x.flatten(1))
    return {"counts": select.count(stage["finds"], keys, place(at, "model"))}


def _start(numel: int, config: Mapping[str, Any], n: int) -> dict[str, Any]:
    tail = TAILS[config["variant"]]
    return {"finds": select.start(((int(numel * tail) + 1, int(numel * (1 - tail) - 1) + 1),) * n, exact=True)}


def _join(total: dict[str, Tensor], seen: Any, *, numel: int, **config: Any) -> tuple[Any, bool]:
    stage = _start(numel, config, len(config["weights"])) if seen is None else seen
    finds, done = select.step(stage["finds"], total["counts"])
    if not done:
        return {**stage, "finds": finds}, False
    bounds = tuple(tuple(select.value(f.key) for f in row) for row in finds)
    if "bounds" in stage:
        return {**stage, "scores": bounds}, True
    ranks = tuple((min(numel, int(numel * (1 - d)) + 1), numel) for d in config["density"])
    return {"bounds": bounds, "finds": select.start(ranks, exact=True)}, False


@method(
    "pcb",
    paper="Parameter Competition Balancing for Model Merging, arXiv 2410.02396",
    equation=(
        "beta_t = exp(T N(|tau_t|)^2) tanh(tau_t sum_j tau_j), its top `density`; "
        "tau = sum beta_t w_t tau_t / sum beta_t"
    ),
    survey=Survey(_look, _join, lambda config: "model"),
)
def pcb(
    tensors: Sequence[Tensor],
    base: Tensor,
    *,
    weights: Sequence[float],
    seen: Any,
    density: Density = 0.1,
    scale: Annotated[float, Range()] = 1.2,
    variant: Variant = "official",
) -> Tensor:
    """Whole-model quantiles, N the minimum-maximum scaling to [0, 1], |tau| held between its extreme quantiles.

    density: the repository's pcb_ratio; weights: the paper's lambda_t; scale: on the sum. variant, as the repository
    has four: "official" (pcb-merging.py); "nlp": quantiles of 1 % at either end; "vision": the signed N in place of tau
    in the inter-balancing; "es": sum over j of tanh(N_t N_j), of signed N. The last two are by their description, not
    run against.
    """
    tau = deltas(tensors, base)
    a = _clamped(tau, seen["bounds"])[0] * tau.sign()
    low, high = (column([b[i] for b in seen["scores"]], tau) for i in (0, 1))
    beta = (_score(tau, seen["bounds"], variant).clamp(low, high) - low) / torch.where(high > low, high - low, 1.0)
    return base + scale * (a * beta * column(weights, a)).sum(0) / beta.sum(0).clamp(min=1e-12)
