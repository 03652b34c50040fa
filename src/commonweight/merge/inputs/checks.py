"""Checks of what is to be merged: how many models, which options and weights, tensors that fit each other."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any

from ...core import CommonweightError, counted
from ..registry import Method
from ..sources.source import Source


def counts(method: Method, models: int, base: bool) -> None:
    """Raises: CommonweightError for a number of models or a base that the method does not take."""
    low, high = method.models
    if models < low or (high is not None and models > high):
        wanted = f"{low}" if low == high else f"at least {low}" if high is None else f"{low} to {high}"
        raise CommonweightError(f"{method.name}: {counted(models, 'model')} given; it takes {wanted}")
    if method.base == "required" and not base:
        raise CommonweightError(
            f"{method.name}: base is missing; give base=, the model that the others were trained from"
        )
    if method.base == "none" and base:
        raise CommonweightError(f"{method.name} takes no base; leave base out, or list it among the models")


def configure(method: Method, options: Mapping[str, Any], weights: Any, models: int) -> dict[str, Any]:
    """The whole configuration, `weights` among it, checked."""
    config = method.resolve(options, models)
    config["weights"] = _weights(method, weights, config, models)
    return config


def _weights(method: Method, weights: Any, config: Mapping[str, Any], n: int) -> tuple[float, ...]:
    if weights is None:
        return (1 / n if method.weight == "1/T" else float(method.weight),) * n
    if "weights" not in inspect.signature(method.function).parameters:
        raise CommonweightError(f"{method.name} takes no weights; leave them out")
    if isinstance(weights, int | float):
        weights = [weights] * n
    weights = list(weights)
    if len(weights) != n:
        raise CommonweightError(
            f"{method.name}: {counted(len(weights), 'weight')} for {counted(n, 'model')}; give one for each model"
        )
    for i, w in enumerate(weights):
        if isinstance(w, bool) or not isinstance(w, int | float) or not math.isfinite(w):
            raise CommonweightError(f"{method.name}: weights[{i}] is {w!r}; wanted a finite number")
    if method.normalises(config) and abs(sum(weights)) < 1e-8:
        raise CommonweightError(
            f"{method.name}: the weights {weights} sum to zero, by which it divides; change one of them"
        )
    return tuple(float(w) for w in weights)


def plain(weights: Any) -> Any:
    """Numbers of torch and numpy as Python's."""
    if callable(found := getattr(weights, "tolist", None)):
        return found()
    return [plain(w) for w in weights] if isinstance(weights, list | tuple) else weights


def names(sources: Sequence[Source]) -> list[str]:
    """The tensors' names, sorted; all sources must have the same, of the same shapes and kinds."""
    first, *others = sources
    for s in others:
        for name in sorted(first.shapes.keys() - s.shapes.keys()):
            raise CommonweightError(
                f"{name}: {s.label} has no such tensor, {first.label} has; leave it out of all, or add it"
            )
        for name in sorted(s.shapes.keys() - first.shapes.keys()):
            raise CommonweightError(
                f"{name}: {s.label} has such a tensor, {first.label} has none; leave it out, or add it"
            )
        for name in first.shapes:
            same(name, (first, name), (s, name))
    return sorted(first.shapes)


def same(out: str, a: tuple[Source, str], b: tuple[Source, str]) -> None:
    """Raises: CommonweightError where two tensors that become one differ in shape, or in being whole numbers."""
    (first, m), (other, n) = a, b
    if other.shapes[n] != first.shapes[m]:
        raise CommonweightError(
            f"{out}: {other.label} has shape {other.shapes[n]}, {first.label} has {first.shapes[m]}"
        )
    if other.dtypes[n].is_floating_point != first.dtypes[m].is_floating_point:
        raise CommonweightError(f"{out}: {other.label} has {other.dtypes[n]}, {first.label} has {first.dtypes[m]}")
