"""A piece of the result by a loop: what steps say becomes whole numbers."""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...core.rng import key
from ..maths import parts, select
from ..registry.steps import Compete, Cut, Drop, Merge, Piece
from ..sources.at import At
from .calls import KINDS, Digests, Sums, arrays, room, scratch, whole
from .competing import compete
from .load import Loop

_HOW = {"average": 0, "onto": 1, "elect": 2}
_NONE, _ALL = 0x7FFFFFFF, -1  # the largest magnitude that goes, as bits
Made = tuple[Tensor, list[Sums]]


def serves(steps: Piece, shape: Sequence[int], dtypes: Sequence[torch.dtype]) -> bool:
    """Whether there is a loop for this, on pieces of such a shape."""
    if not all(d in KINDS for d in dtypes):
        return False
    if isinstance(steps, Compete):
        return True
    if isinstance(steps.left, Drop) and steps.left.rising and len(shape) > 2 and steps.left.epsilon is not None:
        return False  # ranks along a dimension that is not the last
    if steps.how == "elect" and steps.divide == "weights" and steps.elect == "plain":
        return not parts.may_cancel(steps.weights)
    return True


def merge(
    loops: Mapping[str, Loop],
    steps: Piece,
    raw: Sequence[Tensor],
    at: At,
    shape: Sequence[int],
    dtype: torch.dtype,
    marked: bool,
) -> Made | None:
    """A piece of the result, of raw (n,) of the models and the base, and if `marked` what a digest adds up of each and
    of the result. None where a number is not finite, or a result does not fit."""
    out = torch.empty(raw[0].numel(), dtype=dtype)
    digests = Digests([*raw, out], marked)
    if isinstance(steps, Compete):
        done = compete(loops, steps, raw, out, digests)
    else:
        done = _merge(loops, steps, raw, at, shape, out, digests)
    return (out, digests.found()) if done else None


def _merge(
    loops: Mapping[str, Loop],
    steps: Merge,
    raw: Sequence[Tensor],
    at: At,
    shape: Sequence[int],
    out: Tensor,
    digests: Digests,
) -> bool:
    given, result, models = arrays(raw), arrays([out]), len(steps.weights)
    factors = _factors(steps)
    left = _left(loops, steps.left, raw, at, shape)
    if left is None:
        return False
    head = whole([
        out.numel(), at.start, models, len(raw) - models, *given.told, result.kinds[0], result.places[0], *digests.told,
        left.kind, left.whole.buffer_info()[0], left.whole.buffer_info()[0], left.real.ctypes.data, _HOW[steps.how],
        factors.ctypes.data, steps.divide != "one", steps.rounded == 1, scratch(models),
    ])  # fmt: skip
    return not loops["merge"](head)


def _factors(steps: Merge) -> np.ndarray:
    """Of each model one factor; or, where signs are elected, the four that `elect` takes, then the zero's sign and the
    scale."""
    if steps.how != "elect":
        return np.array(steps.weights, np.float32)
    weighted, out = steps.elect == "weighted", []
    for w in steps.weights:
        own = (math.copysign(1.0, w) if w else 0.0) if weighted else 1.0
        share = w if steps.divide == "weights" else 1.0
        out += [w if weighted else 1.0, own, w * own if weighted else w, share]
    return np.array([*out, steps.zero, steps.scale], np.float32)


class _Left(NamedTuple):
    """What stays of the task vectors: whole numbers and others, of each model; kept: what they have addresses of."""

    kind: int
    whole: array[int]
    real: np.ndarray
    kept: object = None


_EVERYTHING = _Left(0, whole([0]), np.zeros(1, np.float32))


def _left(
    loops: Mapping[str, Loop], left: Cut | Drop | None, raw: Sequence[Tensor], at: At, shape: Sequence[int]
) -> _Left | None:
    if isinstance(left, Cut):
        first = parts.place(at, left.scope)
        cuts = [_edge(row[w].cut, first, raw[0].numel()) for w in left.which for row in left.finds]
        return _Left(len(left.which), whole(chain(*cuts)), _EVERYTHING.real)
    return _EVERYTHING if left is None else _drop(loops, left, raw, at, shape)


def _edge(cut: select.Cut, first: int, n: int) -> tuple[int, int, int]:
    """(the largest magnitude that goes, as bits; before what place of the piece it stays; bits that are left)."""
    if cut.key >= 0:
        return _ALL, 0, 0
    if cut.key == select.NOTHING:
        return _NONE, 0, 0
    if first < cut.index < first + n:
        return ~cut.key, cut.index - first, -(1 << 31)  # there the form in torch multiplies, and zeros have signs
    return (~cut.key if cut.index <= first else ~cut.key - 1), 0, 0


def _drop(loops: Mapping[str, Loop], left: Drop, raw: Sequence[Tensor], at: At, shape: Sequence[int]) -> _Left | None:
    n, width, ranks = raw[0].numel(), shape[-1], 0
    if left.epsilon is not None:
        ranks = _ranks(loops, raw, width, left.rising)
        if not ranks:
            return None
    keys, told, real = [], [], []
    for t, density in enumerate(left.density):
        own = [key(left.seed, parts.sequence(at, t, kind)) for kind in (np.uint16, np.uint8)]
        d, e = np.float32(density), np.float32(left.epsilon or 0)
        edge = math.ceil(float(d) * 2**24) if left.epsilon is None else -1
        steps = max(1, width - 1) if left.rising else width
        told += [*(k.ctypes.data for k in own), edge, ranks + 4 * t * n, steps, left.rising]
        after = 1 if left.scaled else 2 if left.factors else 0
        first = d - e if left.rising else np.float32(1) - d
        real.append([d, first, (left.epsilon or 0) / 2, e, density >= 1, after, left.factors[t] if left.factors else 1])
        keys.append(own)
    return _Left(3, whole(told), np.array(real, np.float32), keys)


def _ranks(loops: Mapping[str, Loop], raw: Sequence[Tensor], width: int, rising: bool) -> int:
    """The address of each entry's rank in its row by magnitude; 0 where an input is not finite."""
    n, models = raw[0].numel(), len(raw) - 1
    given, ranks = arrays(raw), room("ranks", models * n)
    spare = room("sorting", 5 * width + 4)
    head = whole([
        n // width, width, models, *given.told, rising, ranks.ctypes.data, spare.ctypes.data, scratch(models),
    ])  # fmt: skip
    return 0 if loops["rank"](head) else ranks.ctypes.data
