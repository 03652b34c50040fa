"""PCB by loops; its tanh is NumPy's and its powers of 2 are torch's, as in its own form."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from ..registry.steps import Compete
from .calls import Digests, arrays, room, scratch
from .load import Loop

Bounds = Sequence[Sequence[float]]
_MOST = 80  # models, as in the method
_TINY = 1e-30  # as in the method: a range of values whose inverse would be beyond float32
_PART = 1 << 15  # numbers of each model whose scores are made at a time


def scores(loops: Mapping[str, Loop], raw: Sequence[Tensor], bounds: Bounds) -> Tensor | None:
    """float32 (T, n), in room that the next ones take again; None where an input is not finite."""
    n, models = len(raw[0]), len(raw) - 1
    out = torch.from_numpy(room("scores", models * n))[: models * n].view(models, n)
    for first in range(0, n, _PART):
        part = [x[first : first + _PART] for x in raw]
        found = _scores(loops, part, bounds)
        if found is None:
            return None
        out[:, first : first + _PART] = found
    return out


def _scores(loops: Mapping[str, Loop], raw: Sequence[Tensor], bounds: Bounds) -> Tensor | None:
    n, models = len(raw[0]), len(raw) - 1
    inter, intra = (room(k, models * n)[: models * n].reshape(models, n) for k in ("inter", "intra"))
    numbers, given = _numbers(bounds), arrays(raw)
    head = np.array([
        n, models, *given.told, 0, 0, 0, 0, numbers.ctypes.data, inter.ctypes.data, intra.ctypes.data,
        any(low for low, _ in bounds), scratch(models),
    ])  # fmt: skip
    if loops["score"](head.ctypes.data):
        return None
    np.tanh(inter, out=inter)
    power = torch.from_numpy(intra)
    return torch.from_numpy(inter).mul_(torch.exp2(power, out=power))


def compete(loops: Mapping[str, Loop], steps: Compete, raw: Sequence[Tensor], out: Tensor, digests: Digests) -> bool:
    """Fills a piece of the result; whether all numbers fit."""
    found = scores(loops, raw, steps.bounds)
    if found is None:
        return False
    numbers, given, result = _numbers(steps.bounds, steps), arrays(raw), arrays([out])
    head = np.array([
        len(out), len(raw) - 1, *given.told, result.kinds[0], result.places[0], *digests.told, numbers.ctypes.data,
        found.data_ptr(), 0, 0, scratch(len(raw) - 1),
    ])  # fmt: skip
    return not loops["compete"](head.ctypes.data)


def _numbers(bounds: Bounds, steps: Compete | None = None) -> np.ndarray:
    models, out = len(bounds), []
    times = math.sqrt(models * math.log2(math.e))
    for t, (low, high) in enumerate(bounds):
        scale = times / (high - low) if high - low > _TINY else 0.0
        floor, share, weight = 0.0, 0.0, 0.0
        if steps is not None:
            floor, top = steps.scores[t]
            share = 1 / (top - floor) if top - floor > _TINY else 1.0
            weight = steps.weights[t] * share
        out += [low, high, scale, floor, share, weight]
    less = (models - _MOST) * math.log2(math.e) if models > _MOST else 0.0
    return np.array([*out, times, less, 0.0 if steps is None else steps.scale], np.float32)
