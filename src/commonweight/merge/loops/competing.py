"""PCB by loops. Where a tanh is needed it is NumPy's, and the powers of 2 beside it are torch's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from ..maths import parts
from ..registry.steps import Compete
from .calls import Digests, arrays, room, scratch, whole
from .load import Loop

Bounds = Sequence[Sequence[float]]
_MOST = 80  # models, as in the method
_TINY = 1e-30  # as in the method: a range of values whose inverse would be beyond float32
_SCORES = 11  # where the call is told of SCORES, as in kernel/competing.py
_LARGE = 4  # what it returns where it cannot make them
_PART = 1 << 15  # numbers of each model whose scores are made at a time: they stay in the second cache


def scores(loops: Mapping[str, Loop], raw: Sequence[Tensor], bounds: Bounds) -> Tensor | None:
    """float32 (T, n), in room that the next ones take again; None where an input is not finite. For any numbers: its
    tanh is NumPy's and its powers of 2 are torch's."""
    n, models = raw[0].numel(), len(raw) - 1
    part = min(n, _PART)
    out, powers = (room(k, models * m)[: models * m] for k, m in (("scores", n), ("powers", part)))
    made = torch.from_numpy(out).view(models, n)
    for first in range(0, n, part):
        last = min(n, first + part)
        if _score(loops["score"], raw, bounds, out, (first, last), powers):
            return None
        inter = made[:, first:last]
        np.tanh(inter.numpy(), out=inter.numpy())
        intra = torch.from_numpy(powers[: inter.numel()]).view(inter.shape)
        inter.mul_(parts.exp2(intra))
    return made


def _score(
    score: Loop, raw: Sequence[Tensor], bounds: Bounds, out: np.ndarray, at: tuple[int, int], powers: np.ndarray | None
) -> int:
    own, given, models = numbers(bounds), arrays(raw), len(raw) - 1
    head = whole([
        *at, raw[0].numel(), models, *given.told, 0, 0, 0, 0, own.ctypes.data, out.ctypes.data,
        0 if powers is None else powers.ctypes.data, has_lows(bounds), scratch(2 * models),
    ])  # fmt: skip
    return score(head)


@lru_cache
def alike(score: Loop) -> bool:
    """Whether this processor's NumPy and torch have the tanh and the powers that loops have: tried, on numbers of all
    sizes. If so, loops make scores whose first factors are their own tanh, below 2 ** -12."""
    tau = torch.linspace(-1e-3, 1e-3, 8192)
    raw = [tau * 0.5, tau, torch.zeros(8192)]
    for low in (0.0, 1e-6):
        bounds = ((low, 1e-3),) * 2
        want, own = scores({"score": score}, raw, bounds), np.empty(2 * 8192, np.float32)
        assert want is not None
        if _score(score, raw, bounds, own, (0, 8192), None) or not np.array_equal(own, want.numpy().ravel()):
            return False
    return True


def compete(loops: Mapping[str, Loop], steps: Compete, raw: Sequence[Tensor], out: Tensor, digests: Digests) -> bool:
    """Fills a piece of the result; whether all numbers fit."""
    own, given, result = numbers(steps.bounds, steps), arrays(raw), arrays([out])
    head = whole([
        0, out.numel(), out.numel(), len(raw) - 1, *given.told, result.kinds[0], result.places[0], *digests.told,
        own.ctypes.data, 0, 0, has_lows(steps.bounds), scratch(2 * len(raw)),
    ])  # fmt: skip
    failed = loops["compete"](head) if alike(loops["score"]) else _LARGE
    if failed & _LARGE:
        found = scores(loops, raw, steps.bounds)
        if found is None:
            return False
        head[_SCORES] = found.data_ptr()
        digests.clear()
        failed = loops["compete"](head)
    return not failed


def has_lows(bounds: Bounds) -> bool:
    return any(low for low, _ in bounds)


def numbers(bounds: Bounds, steps: Compete | None = None) -> np.ndarray:
    """float32: what loops are told of each model, and of all."""
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
