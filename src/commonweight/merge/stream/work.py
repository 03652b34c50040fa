"""What is to be made, and the two things that are done with a piece: looked at, and merged."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest
from typing import Any, Protocol

import torch
from torch import Tensor

from ...core import CommonweightError
from ..loops import merging, rounds
from ..loops.load import Loop
from ..registry import CONTEXT, Method
from ..registry import steps as kinds
from ..sources.at import At
from ..sources.source import Read
from . import digest
from .grid import Piece, pieces, size, thin


@dataclass(frozen=True, eq=False)
class Job:
    """One method with one configuration (`weights` among it), over as many tensors as it is for."""

    method: Method
    config: Mapping[str, Any]

    @cached_property
    def by(self) -> str:
        """As in `pieces`. What is read beside the models comes in whole rows."""
        by = self.method.by(self.config)
        return "rows" if by == "element" and self.method.data != "none" else by

    @cached_property
    def scope(self) -> str | None:
        return None if self.method.survey is None else self.method.survey.scope(self.config)

    @cached_property
    def _wanted(self) -> tuple[dict[str, Any], frozenset[str]]:
        names = inspect.signature(self.method.function).parameters
        return {k: v for k, v in self.config.items() if k != "weights"}, frozenset(k for k in CONTEXT if k in names)

    def merge(self, tensors: list[Tensor], base: Tensor | None, at: At, seen: Any) -> Tensor:
        config, context = self._wanted
        more = {"weights": self.config["weights"], "at": at, "seen": seen}
        return self.method.function(tensors, base, **config, **{k: more[k] for k in context})

    def round(self, seen: Any, numel: int) -> kinds.Round | None:
        """The survey's round as steps, where it has any."""
        survey = self.method.survey
        return None if survey is None or survey.steps is None else survey.steps(seen, numel, self.config)

    def steps(self, at: At, seen: Any) -> kinds.Piece | None:
        return None if self.method.steps is None else self.method.steps(self.config, at, seen)


@dataclass(frozen=True, eq=False)
class Task:
    """One tensor of the result. job none: whole numbers, which must be equal everywhere and are copied."""

    at: At
    job: Job | None
    models: tuple[Read, ...]
    base: Read | None
    dtype: torch.dtype
    piece: int | None = None  # elements at a time, in place of the grid's own choice

    @cached_property
    def reads(self) -> tuple[Read, ...]:
        return (*self.models, self.base) if self.base else self.models

    @cached_property
    def numel(self) -> int:
        return math.prod(self.at.shape)

    def pieces(self) -> Any:
        return pieces(self.at.shape, self.job.by if self.job else "element", self.piece or size(len(self.reads)))


class Sink(Protocol):
    """Where the result goes: any piece at any time."""

    def write(self, name: str, start: int, values: Tensor) -> None: ...


Loops = Mapping[str, Loop] | None


def look(task: Task, span: Sequence[Piece], seen: Any, numel: int, loops: Loops = None) -> dict[str, Any]:
    """What a survey's round finds in a span, added up."""
    assert task.job is not None and task.job.method.survey is not None
    survey, total = task.job.method.survey, {}
    every = 1 if survey.every is None else survey.every(seen, numel, task.job.config)
    by = task.job.by
    steps = task.job.round(seen, numel) if loops else None
    with torch.no_grad():
        cut = [thin(p, by, every) for p in span]
        if survey.skip is not None:
            at = [task.at._replace(start=p.start) for p in cut]
            cut = [p for p, a in zip(cut, at) if not survey.skip(seen, a, math.prod(p.shape), task.job.config)]
        for group in [cut] if every > 1 and by == "element" and cut else [[p] for p in cut]:
            piece, raw = _read(task, group)
            found = None
            if loops and steps:
                at = task.at._replace(start=piece.start)
                found = rounds.look(loops, steps, raw, len(task.models), at, numel)
            if found is None:
                tensors, base, at = _floats(task, piece, raw)
                found = survey.look(tensors, base, at=at, seen=seen, numel=numel, **task.job.config)
            add(total, found)
    return total


def add(total: dict[str, Any], part: Mapping[str, Any]) -> None:
    for k, v in part.items():
        if k in total:
            total[k] += v
        else:
            total[k] = v


def merge(task: Task, span: Sequence[Piece], seen: Any, sink: Sink, marked: bool, loops: Loops = None) -> list[bytes]:
    """Merges a span into the sink. Returns, if `marked`, digests: of each input's part, then of the result's."""
    found = [digest.Running() for _ in range(len(task.reads) + 1)] if marked else []
    with torch.no_grad():
        steps = task.job.steps(task.at, seen) if loops and task.job else None
        for piece in span:
            raw = _raw(task, piece)
            out, sums = _looped(task, piece, raw, steps, marked, loops) or (_plain(task, piece, raw, seen), [])
            sink.write(task.at.name, piece.start, out)
            for mark, part, known in zip_longest(found, [*raw, out] if marked else [], sums):
                mark.add(part, known)
    return [m.value() for m in found]


def _looped(
    task: Task, piece: Piece, raw: list[Tensor], steps: kinds.Piece | None, marked: bool, loops: Loops
) -> merging.Made | None:
    """By a compiled loop, where there is one; a number that does not fit is left to the method's own form, which
    tells of it."""
    if not loops or steps is None:
        return None
    if not merging.serves(steps, piece.shape, [task.dtype, *(x.dtype for x in raw)]):
        return None
    return merging.merge(loops, steps, raw, task.at._replace(start=piece.start), piece.shape, task.dtype, marked)


def _plain(task: Task, piece: Piece, raw: list[Tensor], seen: Any) -> Tensor:
    return _same(task, raw) if task.job is None else _merged(task, piece, raw, seen)


def marks(task: Task, span: Sequence[Piece], back: Callable[[str, int, int], Tensor]) -> list[bytes]:
    """The digests that `merge` would return, of a result that is there already."""
    found = [digest.Running() for _ in range(len(task.reads) + 1)]
    for piece in span:
        out = back(task.at.name, piece.start, math.prod(piece.shape))
        for mark, part in zip(found, [*_raw(task, piece), out]):
            mark.add(part)
    return [m.value() for m in found]


def _raw(task: Task, piece: Piece) -> list[Tensor]:
    return [r.source.flat(r.name, piece.start, math.prod(piece.shape)) for r in task.reads]


def _read(task: Task, group: Sequence[Piece]) -> tuple[Piece, list[Tensor]]:
    """Several pieces as one, which is no longer in one place: what a survey's sample is made of."""
    if len(group) == 1:
        return group[0], _raw(task, group[0])
    raw = [torch.cat(parts) for parts in zip(*(_raw(task, p) for p in group))]
    return Piece(group[0].start, (len(raw[0]),)), raw


def _merged(task: Task, piece: Piece, raw: list[Tensor], seen: Any) -> Tensor:
    assert task.job is not None
    tensors, base, at = _floats(task, piece, raw)
    out = task.job.merge(tensors, base, at, seen).reshape(-1)
    if not _fits(out, task.dtype):
        kind = str(task.dtype).removeprefix("torch.")
        what = "look at the weights and options" if _wide(task.dtype) else "choose dtype bfloat16 or float32"
        raise CommonweightError(f"{at.name}: the result does not fit {kind}; {what}")
    return out.to(task.dtype)


def _wide(dtype: torch.dtype) -> bool:
    return torch.finfo(dtype).max >= torch.finfo(torch.bfloat16).max


def _fits(x: Tensor, dtype: torch.dtype) -> bool:
    if _wide(dtype):
        return _finite(x)
    return not x.numel() or x.abs().amax().item() <= torch.finfo(dtype).max


def _finite(x: Tensor) -> bool:
    return math.isfinite(x.sum().item()) or bool(x.isfinite().all())  # the sum: one pass where all is well


def _floats(task: Task, piece: Piece, raw: list[Tensor]) -> tuple[list[Tensor], Tensor | None, At]:
    found = []
    for read, values in zip(task.reads, raw):
        x = values.float().view(piece.shape)
        if not _finite(x):
            bad = int((~x.isfinite()).sum())
            raise CommonweightError(
                f"{read.name}: {read.source.where(read.name)} has {bad} number{'s' if bad > 1 else ''} there that "
                "are NaN or infinite"
            )
        found.append(x)
    base = found.pop() if task.base else None
    return found, base, task.at._replace(start=piece.start)


def _same(task: Task, raw: list[Tensor]) -> Tensor:
    lead = len(raw) - 1 if task.base else 0
    for read, x in zip(task.reads, raw):
        if not torch.equal(x, raw[lead]):
            raise CommonweightError(
                f"{task.at.name}: whole numbers that differ between {task.reads[lead].source.label} and "
                f"{read.source.label} cannot be merged"
            )
    return raw[lead]
