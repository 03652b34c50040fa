"""TIES: trim each task vector, elect a sign for each parameter, average those that agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from ..call.declare import method
from ..maths import parts
from ..registry import At, Density, Range, Survey
from ..registry.steps import Cut, Merge, Round

Compat = Literal["mergekit", "peft", "fusion-bench", "official"] | None


def scope(config: Mapping[str, Any]) -> Literal["tensor", "model"]:
    return "tensor" if config["compat"] in ("mergekit", "peft") else "model"


def ranks(numel: int, config: Mapping[str, Any]) -> tuple[tuple[int, ...], ...]:
    """How many entries every model keeps, of `numel`."""
    more, least = int(config["compat"] in ("official", "fusion-bench")), int(config["compat"] != "peft")
    return tuple((min(numel, max(least, int(d * numel) + more)),) for d in config["density"])


_cuts = parts.magnitude_cuts(ranks, scope)


def _trim(tau: Tensor, finds: Any, at: At, compat: Compat) -> Tensor:
    return parts.trim(tau, finds, at, scope({"compat": compat}))


def _look(tensors: Sequence[Tensor], base: Tensor, *, at: At, seen: Any, **config: Any) -> dict[str, Any]:
    if isinstance(seen, dict):  # the cuts are found; the official code gives parameters without a sign the model's
        tau = _trim(parts.deltas(tensors, base), seen["finds"], at, config["compat"])
        return {"sign": tau.sum(0).sign().double().sum()}
    return _cuts.look(tensors, base, at=at, seen=seen, **config)


def _join(total: dict[str, Any], seen: Any, **config: Any) -> tuple[Any, bool]:
    if isinstance(seen, dict):
        return {**seen, "zero": int(total["sign"].sign())}, True
    finds, done = _cuts.join(total, seen, **config)
    if not done:
        return finds, False
    return {"finds": finds, "zero": 0}, config["compat"] not in ("official", "fusion-bench")


def _skip(seen: Any, at: At, count: int, config: Mapping[str, Any]) -> bool:
    assert _cuts.skip is not None
    return not isinstance(seen, dict) and _cuts.skip(seen, at, count, config)


def _every(seen: Any, numel: int, config: Mapping[str, Any]) -> int:
    assert _cuts.every is not None
    return 1 if isinstance(seen, dict) else _cuts.every(seen, numel, config)


def _round(seen: Any, numel: int, config: Mapping[str, Any]) -> Round | None:
    assert _cuts.steps is not None
    return None if isinstance(seen, dict) else _cuts.steps(seen, numel, config)


def _steps(config: Mapping[str, Any], at: At, seen: Any) -> Merge:
    left = Cut(seen["finds"], scope(config))
    return Merge("elect", config["weights"], left, scale=config["scale"], **_election(seen, **config))


def _election(
    seen: Any, compat: Compat, reduce: Literal["mean", "sum"] | None, normalize: bool | None, **config: Any
) -> dict[str, Any]:
    reduce = reduce or ("sum" if compat == "fusion-bench" or normalize is False else "mean")
    return {
        "elect": "weighted" if compat == "mergekit" else "plain",
        "zero": 1 if compat in ("mergekit", "peft") else seen["zero"],
        "divide": "one" if reduce == "sum" else "count" if compat == "peft" else "weights",
    }


@method(
    "ties",
    paper="TIES-Merging: Resolving Interference When Merging Models, arXiv 2306.01708",
    equation="algorithm 1: tau^ = top-k(tau_t); gamma = sgn(sum_t tau^_t); tau_m = mean of the tau^_t with sign gamma",
    survey=Survey(_look, _join, scope, _skip, _every, _round),
    steps=_steps,
)
def ties(
    tensors: Sequence[Tensor],
    base: Tensor,
    *,
    weights: Sequence[float],
    at: At,
    seen: Any,
    density: Density = 0.2,
    scale: Annotated[float, Range()] = 1.0,
    reduce: Literal["mean", "sum"] | None = None,
    normalize: bool | None = None,
    compat: Compat = None,
) -> Tensor:
    """theta_0 + scale * disjoint merge. The largest `density` of a task vector over the WHOLE model is kept, equal
    magnitudes by index (tensors by name, then elements in order).

    weights (the paper has none): a weighted mean of those that agree; the sign is that of the unweighted sum. Where
    the weights that agree add up to nothing (below 1e-6 of their sizes), nothing changes.
    reduce: mean, or sum (default of fusion-bench). normalize=False is mergekit's name for the sum.
    compat: "official" keeps one entry more and gives parameters whose sum is zero the model's sign; "fusion-bench": the
    same with reduce="sum"; "mergekit": cut per tensor, sign of the WEIGHTED sum, zero counts as plus; "peft": cut per
    tensor, sum of weighted over their COUNT, zero counts as plus. Official code has no weights: they scale the mean's
    parts.
    """
    tau = _trim(parts.deltas(tensors, base), seen["finds"], at, compat)
    merged = parts.agreeing(tau, weights, **_election(seen, compat, reduce, normalize))
    return torch.add(base, merged, alpha=scale)
