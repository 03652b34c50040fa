"""PCB: every parameter competes within its task and across tasks; the losers drop out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
import torch
from torch import Tensor

from .. import select
from ..parts import combine, deltas, place
from ..registry import At, Density, Range, Survey, method

Variant = Literal["official", "nlp", "vision", "es"]
TAILS = {"official": 1e-4, "nlp": 0.01, "vision": 1e-4, "es": 1e-4}


def _held(tau: Tensor, bounds: Sequence[Sequence[float]]) -> Tensor:
    """The task vectors, their magnitudes between their quantiles; zero stays zero."""
    out = torch.empty_like(tau)
    for x, y, (low, high) in zip(tau, out, bounds, strict=True):
        torch.clamp(x, -high, high, out=y)
        if low > 0:
            y.abs_().clamp_(min=low).mul_(x.sign())
    return out


def _norm(tau: Tensor, bounds: Sequence[Sequence[float]]) -> Tensor:
    """N, with the task vectors' signs."""
    out = _held(tau, bounds)
    for x, y, (low, high) in zip(tau, out, bounds, strict=True):
        scale = 1 / (high - low) if high > low else 1.0
        y.mul_(scale)
        if low > 0:
            y.sub_(x.sign(), alpha=low * scale)
    return out


def _intra(x: Tensor, models: int, low: float, high: float) -> Tensor:
    """exp(T N^2) of one task vector, as a power of 2: twice as fast. With many models all are smaller by one factor,
    which goes out again where scores are scaled, so that none overflows."""
    scale = 1 / (high - low) if high > low else 1.0
    n = x.clamp(-high, high)
    if low > 0:
        n.abs_().clamp_(min=low).sub_(low)
    less = torch.tensor(-max(0.0, models - 80.0) * math.log2(math.e))
    power = torch.addcmul(less, n, n, value=models * math.log2(math.e) * scale * scale, out=n)
    return torch.exp2(power, out=power)


def _score(tau: Tensor, bounds: Any, variant: Variant) -> Tensor:
    """Intra- times inter-balancing (T, *shape)."""
    signed = _norm(tau, bounds) if variant in ("vision", "es") else tau
    total, out = sum(signed[1:], signed[0]), torch.empty_like(tau)
    for x, own, score, (low, high) in zip(tau, signed, out, bounds, strict=True):
        if variant == "es":
            torch.sum((own * signed).tanh_(), 0, out=score)
        else:
            torch.mul(own, total, out=score)
            np.tanh(score.numpy(), out=score.numpy())  # NumPy's is many times as fast
        score.mul_(_intra(x, len(tau), low, high))
    return out


def _look(tensors: Sequence[Tensor], base: Tensor, *, at: At, seen: Any, numel: int, **config: Any) -> dict[str, Any]:
    tau = deltas(tensors, base)
    stage = _start(numel, config) if seen is None else seen
    if bounds := stage.get("bounds"):
        values = _score(tau, bounds, config["variant"])
    else:
        values = tau.abs_()
    return {"counts": select.count(stage["finds"], values.flatten(1), place(at, "model"), numel)}


def _skip(seen: Any, at: At, count: int, config: Mapping[str, Any]) -> bool:
    first = place(at, "model")
    return seen is not None and select.idle(seen["finds"], first, first + count)


def _every(seen: Any, numel: int, config: Mapping[str, Any]) -> int:
    return select.every((_start(numel, config) if seen is None else seen)["finds"])


def _start(numel: int, config: Mapping[str, Any]) -> dict[str, Any]:
    tail = TAILS[config["variant"]]
    ranks = (int(numel * tail) + 1, int(numel * (1 - tail) - 1) + 1)
    return {"finds": select.start((ranks,) * len(config["weights"]), numel, exact=True, sampled=True)}


def _join(total: dict[str, Any], seen: Any, *, numel: int, **config: Any) -> tuple[Any, bool]:
    stage = _start(numel, config) if seen is None else seen
    finds, done = select.step(stage["finds"], total["counts"], numel)
    if not done:
        return {**stage, "finds": finds}, False
    bounds = tuple(tuple(f.value for f in row) for row in finds)
    if "bounds" in stage:
        return {**stage, "scores": bounds}, True
    ranks = tuple((min(numel, int(numel * (1 - d)) + 1), numel) for d in config["density"])
    return {"bounds": bounds, "finds": select.start(ranks, numel, exact=True, sampled=True)}, False


@method(
    "pcb",
    paper="Parameter Competition Balancing for Model Merging, arXiv 2410.02396",
    equation=(
        "beta_t = exp(T N(|tau_t|)^2) tanh(tau_t sum_j tau_j), its top `density`; "
        "tau = sum beta_t w_t tau_t / sum beta_t"
    ),
    survey=Survey(_look, _join, lambda config: "model", _skip, _every),
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
    beta, scales = _score(tau, seen["bounds"], variant), []
    for x, (low, high) in zip(beta, seen["scores"], strict=True):  # from 0 to 1, but for the scales
        x.clamp_(low, high).sub_(low)
        scales.append(1 / (high - low) if high > low else 1.0)
    total = combine(beta, scales).clamp_(min=1e-12)
    merged = combine(_held(tau, seen["bounds"]).mul_(beta), [w * s for w, s in zip(weights, scales)])
    return torch.add(base, merged.div_(total), alpha=scale)
