"""PCB by loops; its tanh is NumPy's and its powers of 2 are torch's, as in its own form."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from ..registry.steps import Compete
from .calls import Digests, arrays, room, scratch
from .load import Loop

Bounds = Sequence[Sequence[float]]
_MOST = 80  # models, as in the method
_TINY = 1e-30  # as in the method: a range of values whose inverse would be beyond float32
_POWERS = 12  # where the call is told of POWERS, as in kernel/competing.py
_STEP = 32  # of which torch makes the powers at a time
_PART = 1 << 15  # numbers of each model whose scores are made at a time: they stay in the second cache


def scores(loops: Mapping[str, Loop], raw: Sequence[Tensor], bounds: Bounds) -> Tensor | None:
    """float32 (T, n), in room that the next ones take again; None where an input is not finite."""
    return _scores(loops, raw, bounds, _alike(loops["score"]))


def _scores(loops: Mapping[str, Loop], raw: Sequence[Tensor], bounds: Bounds, at_once: bool) -> Tensor | None:
    """at_once: most by the loop alone, where all first factors are their own tanh. torch computes the last few of all
    numbers in another way than the rest, so these are left to it."""
    n, models = len(raw[0]), len(raw) - 1
    part, done = min(n, _PART), 0
    out, powers = (room(k, models * m)[: models * m] for k, m in (("scores", n), ("powers", part)))
    numbers, given, lows = _numbers(bounds), arrays(raw), any(low for low, _ in bounds)
    head = np.array([
        0, 0, n, models, *given.told, 0, 0, 0, 0, numbers.ctypes.data, out.ctypes.data, 0, lows, scratch(models),
    ])  # fmt: skip
    if at_once and n >= 2 * _STEP:
        head[1] = (n - _STEP) // _STEP * _STEP
        found = loops["score"](head)
        if found & 1:
            return None
        done = 0 if found else int(head[1])
    head[_POWERS] = powers.ctypes.data
    made = torch.from_numpy(out).view(models, n)
    for first in range(done, n, part):
        head[:2] = first, min(n, first + part)
        if loops["score"](head):
            return None
        inter = made[:, first : first + part]
        np.tanh(inter.numpy(), out=inter.numpy())
        intra = torch.from_numpy(powers[: inter.numel()]).view(inter.shape)
        inter.mul_(torch.exp2(intra, out=intra))
    return made


@lru_cache
def _alike(score: Loop) -> bool:
    """Whether this processor's NumPy and torch have the tanh and the powers that the loop has: tried, on numbers of all
    sizes."""
    tau = torch.linspace(-1e-3, 1e-3, 8192)
    raw = [tau * 0.5, tau, torch.zeros(8192)]
    for low in (0.0, 1e-6):
        one, other = (_copied(score, raw, ((low, 1e-3),) * 2, way) for way in (True, False))
        if not torch.equal(one, other):
            return False
    return True


def _copied(score: Loop, raw: Sequence[Tensor], bounds: Bounds, at_once: bool) -> Tensor:
    made = _scores({"score": score}, raw, bounds, at_once)
    assert made is not None
    return made.clone()


def compete(loops: Mapping[str, Loop], steps: Compete, raw: Sequence[Tensor], out: Tensor, digests: Digests) -> bool:
    """Fills a piece of the result; whether all numbers fit."""
    found = scores(loops, raw, steps.bounds)
    if found is None:
        return False
    numbers, given, result = _numbers(steps.bounds, steps), arrays(raw), arrays([out])
    head = np.array([
        0, len(out), len(out), len(raw) - 1, *given.told, result.kinds[0], result.places[0], *digests.told,
        numbers.ctypes.data, found.data_ptr(), 0, 0, scratch(len(raw) - 1),
    ])  # fmt: skip
    return not loops["compete"](head)


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
