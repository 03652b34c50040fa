"""PCB: every parameter competes within its task and across tasks; the losers drop out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
import torch
from torch import Tensor

from ..call.declare import method
from ..maths import select
from ..maths.parts import column, combine, deltas, exp2, place
from ..registry import At, Density, Range, Survey
from ..registry.steps import Compete, Count

Variant = Literal["official", "nlp", "vision", "es"]
TAILS = {"official": 1e-4, "nlp": 0.01, "vision": 1e-4, "es": 1e-4}
TINY = 1e-30  # a range of values whose inverse would be beyond float32


def _held(tau: Tensor, bounds: Sequence[Sequence[float]]) -> Tensor:
    """The task vectors, in their own place, their magnitudes between their quantiles; zero stays zero."""
    for x, (low, high) in zip(tau, bounds, strict=True):
        x.clamp_(-high, high)
        if low > 0:
            x.copy_(x.abs().clamp_(min=low).mul_(x.sign()))
    return tau


def _intra(tau: Tensor, bounds: Sequence[Sequence[float]]) -> Tensor:
    """exp(T N^2), as a power of 2: twice as fast. With many models all are smaller by one factor, which goes out again
    where scores are scaled, so that none overflows."""
    models = len(tau)
    out = _norm(tau, bounds, math.sqrt(models * math.log2(math.e))).square_()
    if models > 80:
        out.sub_((models - 80) * math.log2(math.e))
    return exp2(out)


def _norm(tau: Tensor, bounds: Sequence[Sequence[float]], times: float = 1.0) -> Tensor:
    """N, the magnitudes between their quantiles scaled to [0, 1], times a factor; its sign is that of tau, or none."""
    scales = [times / (high - low) if high - low > TINY else 0.0 for low, high in bounds]
    lows = [low for low, _ in bounds]
    if any(lows):
        return tau.abs().sub_(column(lows, tau)).mul_(column(scales, tau)).clamp_(0, times)
    return tau.mul(column(scales, tau)).clamp_(-times, times)


def _score(tau: Tensor, bounds: Any, variant: Variant) -> Tensor:
    """Intra- times inter-balancing (T, *shape)."""
    if variant in ("official", "nlp"):
        inter = tau * sum(tau[1:], tau[0])
    else:
        norm = _norm(tau, bounds).copysign_(tau)
        inter = norm * norm.sum(0) if variant == "vision" else torch.stack([(x * norm).tanh().sum(0) for x in norm])
    if variant != "es":
        np.tanh(inter.numpy(), out=inter.numpy())  # NumPy's is many times as fast
    return inter.mul_(_intra(tau, bounds))


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


def _round(seen: Any, numel: int, config: Mapping[str, Any]) -> Count | None:
    stage = _start(numel, config) if seen is None else seen
    if "bounds" not in stage:
        return Count(stage["finds"], "model", "sizes")
    known = config["variant"] in ("official", "nlp")
    return Count(stage["finds"], "model", "scores", stage["bounds"]) if known else None


def _steps(config: Mapping[str, Any], at: At, seen: Any) -> Compete | None:
    known = config["variant"] in ("official", "nlp") and all(high > 0 for _, high in seen["bounds"])
    return Compete(seen["bounds"], seen["scores"], config["weights"], config["scale"]) if known else None


@method(
    "pcb",
    paper="Parameter Competition Balancing for Model Merging, arXiv 2410.02396",
    equation=(
        "beta_t = exp(T N(|tau_t|)^2) tanh(tau_t sum_j tau_j), its top `density`; "
        "tau = sum beta_t w_t tau_t / sum beta_t"
    ),
    survey=Survey(_look, _join, lambda config: "model", _skip, _every, _round),
    steps=_steps,
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
    scales = [1 / (high - low) if high - low > TINY else 1.0 for low, high in seen["scores"]]
    beta = _score(tau, seen["bounds"], variant)
    beta.sub_(column([low for low, _ in seen["scores"]], beta)).relu_()  # from 0 to 1, but for the scales
    total = combine(beta, scales).clamp_(min=1e-12)
    merged = combine(_held(tau, seen["bounds"]).mul_(beta), [w * s for w, s in zip(weights, scales)])
    return torch.add(base, merged.div_(total), alpha=scale)
