"""A round of a survey on a piece by a loop: what was found comes back as the survey's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..maths import parts, select
from ..registry.steps import Count, Norms, Round, Squares
from ..sources.at import At
from .calls import KINDS, WINDOW, arrays, room, scratch, whole
from .competing import alike, has_lows, numbers, scores
from .load import Loop

_MANY = 1 << 11  # numbers found in a piece that are counted at once
_VALUES = {"falling": 0, "sizes": 1, "given": 2, "scores": 3}


def look(
    loops: Mapping[str, Loop], steps: Round, raw: Sequence[Tensor], models: int, at: At, numel: int
) -> dict[str, Any] | None:
    """What a round finds in raw (n,) of the models and the base; None where a number is not finite, or in a format that
    no loop reads."""
    if not all(x.dtype in KINDS for x in raw):
        return None
    if isinstance(steps, Squares):
        found = _squares(loops, raw, models)
        return None if found is None else {"squares": found}
    if isinstance(steps, Norms):
        found = _norms(loops, steps, raw, models)
        return None if found is None else {"l1": found}
    found = _count(loops, steps, raw, models, at, numel)
    if found is None and steps.values == "scores" and (made := scores(loops, raw, steps.bounds)) is not None:
        found = _count(loops, replace(steps, values="given"), list(made), models, at, numel)
    return None if found is None else {"counts": found}


def _squares(loops: Mapping[str, Loop], raw: Sequence[Tensor], models: int) -> Tensor | None:
    given, out = arrays(raw), torch.from_numpy(room("squares", models * raw[0].numel()))
    out = out[: models * raw[0].numel()].view(models, -1)
    head = whole([raw[0].numel(), models, *given.told, out.data_ptr(), scratch(models)])
    return None if loops["square"](head) else out.sum(1).double()


def _norms(loops: Mapping[str, Loop], steps: Norms, raw: Sequence[Tensor], models: int) -> Tensor | None:
    n, rows = raw[0].numel(), len(steps.weights)
    given, weights, out = arrays(raw), np.array(steps.weights, np.float32), room("squares", rows * n)[: rows * n]
    head = whole([n, models, *given.told, out.ctypes.data, scratch(models), rows, weights.ctypes.data])
    if loops["size"](head):
        return None
    return torch.stack([x.sum().double() for x in torch.from_numpy(out).view(rows, n)])


def _count(
    loops: Mapping[str, Loop], steps: Count, raw: Sequence[Tensor], models: int, at: At, numel: int
) -> select.Counts | None:
    if steps.values == "scores" and not alike(loops["score"]):
        return None
    n, first, bounds = raw[0].numel(), parts.place(at, steps.scope), steps.bounds
    own = numbers(bounds) if steps.values == "scores" else np.zeros(1, np.float32)
    given, rows = arrays(raw), select.asked(steps.finds)
    wanted = [(t, f) for t, row in enumerate(rows) for f in row if f.cut is None]
    rooms = room("found", 2 * len(wanted) * n).view(np.uint32)
    windows = [_Window(rooms[2 * j * n :], t, f, n, first, numel) for j, (t, f) in enumerate(wanted)]
    told = whole(chain.from_iterable(w.told for w in windows))
    head = whole([
        n, models, len(raw) - models, *given.told, _VALUES[steps.values], told.buffer_info()[0], len(windows),
        scratch(models), own.ctypes.data, has_lows(bounds),
    ])  # fmt: skip
    if loops["count"](head):
        return None
    found = iter([w.tally(loops, *told[(j + 1) * WINDOW - 4 : (j + 1) * WINDOW]) for j, w in enumerate(windows)])
    return select.Counts([[next(found) if f.cut is None else select.Tally() for f in row] for row in rows])


class _Window:
    """A search of one model: what the loop is told, and what it found. room: uint32, for twice n numbers."""

    def __init__(self, room: np.ndarray, model: int, f: select.Find, n: int, first: int, numel: int):
        self.find, self.bins, self.places, where = f, room, room[n:], room.ctypes.data
        low, high, shift = f.low, f.high, f.shift
        same, equal, start, end, width = 0, 0, 0, 0, 0
        self.last = f.key is None and f.exact and f.rank == numel
        if f.key is not None:  # by place, of those with this key
            low, high, same, equal = f.key, f.key + 1, f.key, 1
            start, end, width = f.low, f.high, f.shift
        elif f.guess is not None:
            same, equal, start, end = f.guess, 1, 0, numel
            width = select.window(0, numel)["shift"]
        if high == 0:
            high = 1  # a float32 of minus zero, the last before this window's end, equals zero
        self.told = [
            model, low, high, shift, where, equal, same, first, start, end, width,
            where + 4 * n, int(self.last), 0, 0, 0, -(1 << 31),
        ]  # fmt: skip
        self.count = n

    def tally(self, loops: Mapping[str, Loop], below: int, inside: int, found: int, top: int) -> select.Tally:
        f = self.find
        if self.last:
            return f.last(np.array([top]), self.count)
        places = self.places[:found].copy()
        if f.key is not None:
            return select.Tally(0, places)
        if f.high - f.low == 1 and f.guess is None:
            return select.Tally(below, packed=(np.zeros(1, np.uint32), np.array([inside])))
        if f.every > 1:
            return select.Tally(below, self.bins[:inside].copy(), sample=True, choose=partial(chosen, loops))
        same = None if f.guess is None else select.Tally(0, places)
        if inside > _MANY:
            return select.Tally(below, same=same, packed=runs(loops, self.bins[:inside]))
        return select.Tally(below, self.bins[:inside].copy(), same)


def runs(loops: Mapping[str, Loop], numbers: np.ndarray) -> select.Bins:
    """(each number once, how often it is there): as np.unique has it, but that the numbers are lost."""
    n, digits = len(numbers), 2048
    times = np.empty(n, np.int64)
    spare = room("sorting", n + 2 * digits)
    head = whole([n, numbers.ctypes.data, spare.ctypes.data + 4 * 2 * digits, times.ctypes.data, spare.ctypes.data])
    found = loops["runs"](head)
    return numbers[:found].copy(), times[:found].copy()


def chosen(loops: Mapping[str, Loop], given: Sequence[np.ndarray], ranks: np.ndarray) -> np.ndarray:
    """What select.chosen does; the ranks are lost."""
    out, places = np.empty(len(ranks), np.uint32), whole(chain(*([x.ctypes.data, len(x)] for x in given)))
    spare = np.empty((1 << 16) + 4098 + 2 * sum(map(len, given)), np.uint32)  # of which little is touched
    told = places.buffer_info()[0], len(ranks), ranks.ctypes.data, out.ctypes.data, spare.ctypes.data
    loops["choose"](whole([len(given), *told]))
    return out
