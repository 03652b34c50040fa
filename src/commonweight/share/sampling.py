"""Codes that are drawn for each step of training, so that a model learns to be all of its many."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from ..builder.forms import Elastic
from ..core import CommonweightError
from .choosing import Codes, codes

Draw = Callable[[], Codes]


def bits(model: Any) -> Draw:
    """For each layer of a `qfa` model a bit width: first their mean, evenly between the least and the largest, then
    widths that have it. Drawn one by one and evenly, the mean would hardly ever be near either end.

    From the generator that dropout draws from, so that a resumed run draws the same."""
    layers = {n: m for n, m in model.named_modules() if isinstance(m, Elastic)}
    if not layers:
        raise CommonweightError(f"{type(model).__name__} has no layers in several bit widths; make them with qfa")
    choices = sorted(next(iter(layers.values())).bits)

    def draw() -> Codes:
        return dict(zip((f"{n}.code" for n in layers), spread(choices, len(layers), float(torch.rand(())))))

    return draw


def spread(choices: Sequence[int], n: int, at: float) -> list[float]:
    """n of the choices, in random order, whose mean is next to that share `at` of the way from the least to the most:
    a random vector, moved up or down one entry at a time."""
    want = choices[0] + at * (choices[-1] - choices[0])
    picks = torch.randint(len(choices), (n,)).tolist()
    mean = lambda: sum(choices[p] for p in picks) / n  # noqa: E731
    step = 1 if mean() < want else -1
    for i in torch.randperm(n).tolist() * len(choices):
        if (want - mean()) * step <= 0:
            break
        if 0 <= picks[i] + step < len(choices):
            picks[i] += step
    return [float(choices[p]) for p in picks]


def shares(model: Any, choices: Sequence[float]) -> Draw:
    """For each number of a model's code one of the choices, evenly."""
    code = _one(model)
    return lambda: [choices[i] for i in torch.randint(len(choices), (code.numel(),)).tolist()]


def gammas(model: Any) -> Draw:
    """For each number of a model's code one in [0, 1), evenly."""
    code = _one(model)
    return lambda: torch.rand(code.numel()).tolist()


def _one(model: Any) -> torch.Tensor:
    """The code that all layers read. Raises: CommonweightError where there is none, or several."""
    found = list({id(p): p for p in codes(model).values()}.values())
    if len(found) != 1:
        raise CommonweightError(f"{type(model).__name__} reads {len(found)} codes; wanted a model of mip or supernet")
    return found[0]
