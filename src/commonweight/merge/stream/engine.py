"""The one executor: surveys in rounds, then the merge, span by span over threads. Memory and disk differ by their sink.

Tensors of one job go in batches: the rounds of a batch's tensors run side by side, and what was read lately is read
again from the page cache. A survey of the whole model comes before its job's first batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, Literal, NamedTuple, Protocol

from torch import Tensor

from ..loops import load as loops
from . import beside, digest, work
from .grid import BATCH, Piece, spans
from .memory import give_back
from .pool import Pool
from .work import Job, Sink, Task

GIVE_BACK = 1 << 26  # numbers that are looked at in batches before the memory that they took is given back


class Done(NamedTuple):
    """A finished tensor. inputs: digests of the models' parts, then the base's; seen: of what its job saw before."""

    tensor: str
    inputs: tuple[str, ...]
    output: str
    seen: str


class Written(Sink, Protocol):
    """A sink whose parts can be read back; it is worth having digests of what is in it."""

    def read(self, name: str, start: int, count: int) -> Tensor: ...


Watch = Callable[[Literal["look", "merge"], int], None]  # told how many elements of the result were gone over


class Engine:
    """threads: how many work side by side, where pieces of tensors can be worked on."""

    def __init__(self, threads: int, watch: Watch | None = None):
        self.threads, self.watch = threads, watch or (lambda phase, n: None)
        self._spent = 0  # numbers that were looked at since memory was given back

    def run(
        self, tasks: Sequence[Task], sink: Sink, back: Written | None = None, known: Mapping[str, Done] | None = None
    ) -> Iterator[Done]:
        """Merges `tasks` into `sink`; yields each tensor when it is whole: with digests, if there is `back`.

        known: what an earlier run finished. It is not done again where its inputs, what its job saw and what lies in
        `back` are still the same, bit by bit.
        Raises: CommonweightError before anything is read where statistics are not the models' own (`beside`).
        """
        beside.check(tasks)
        ready = loops.loops(sum(t.numel * len(t.reads) for t in tasks if t.job and t.job.method.steps))
        with Pool(self.threads) as pool:
            for job, group in groupby(tasks, key=lambda t: t.job):
                mine = list(group)
                model = self._survey(pool, [mine], "model", ready)[0]
                mark = digest.of_value(model) if back else ""
                left = [t for t in mine if not (back and self._finished(pool, t, mark, back, known or {}))]
                for batch in batches(left, self.threads):
                    local = self._survey(pool, [[t] for t in batch], "tensor", ready)
                    seen = {t: model if s is None else s for t, s in zip(batch, local)}
                    items = [(t, span) for t in batch for span in spans(t.pieces())]
                    marked = back is not None

                    def merge(x: tuple[Task, list[Piece]], seen=seen, marked=marked) -> list[bytes]:
                        return work.merge(*x, seen[x[0]], sink, marked, ready)

                    found = self._map(pool, job, merge, _announced(items))
                    yield from self._whole(batch, items, found, mark)

    def _map(self, pool: Pool, job: Job | None, f: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        """Whole tensors one at a time, so that no more than one is held; torch's own threads work on it."""
        return pool.alone(f, items) if job is not None and job.by == "tensor" else pool.map(f, items)

    def _survey(self, pool: Pool, groups: Sequence[Sequence[Task]], scope: str, ready: work.Loops) -> list[Any]:
        """What each group's survey saw, or None where it has none of this scope."""
        job = groups[0][0].job
        seen: list[Any] = [None] * len(groups)
        if job is None or job.scope != scope:
            return seen
        survey, numel = job.method.survey, [sum(t.numel for t in g) for g in groups]
        assert survey is not None
        todo = [i for i, n in enumerate(numel) if n]
        while todo:
            items = [(i, t, span) for i in todo for t in groups[i] for span in spans(t.pieces())]
            totals: dict[int, dict[str, Any]] = {i: {} for i in todo}
            found = self._map(pool, job, lambda x: work.look(x[1], x[2], seen[x[0]], numel[x[0]], ready), items)
            for (i, _, span), part in zip(items, found):
                work.add(totals[i], part)
                self.watch("look", _count(span))
            left = []
            for i in todo:
                seen[i], done = survey.join(totals.pop(i), seen[i], numel=numel[i], **job.config)
                if not done:
                    left.append(i)
            todo = left
            self._spent += sum(numel)
            if scope == "model" or self._spent > GIVE_BACK:
                self._spent = 0
                give_back()
        return seen

    def _whole(
        self, batch: Sequence[Task], items: Sequence[tuple[Task, list[Piece]]], found: Iterator[list[bytes]], mark: str
    ) -> Iterator[Done]:
        """Puts spans together to tensors."""
        results = zip(items, found)
        for task in batch:
            parts: list[list[bytes]] = []
            for _ in spans(task.pieces()):
                (_, span), marks = next(results)
                parts.append(marks)
                self.watch("merge", _count(span))
            yield _done(task, parts, mark)

    def _finished(self, pool: Pool, task: Task, mark: str, back: Written, known: Mapping[str, Done]) -> bool:
        entry = known.get(task.at.name)
        if entry is None or entry.seen != mark:
            return False
        parts = list(pool.map(lambda span: work.marks(task, span, back.read), spans(task.pieces())))
        same = _done(task, parts, mark) == entry
        if same:
            self.watch("merge", task.numel)
        return same


def _announced(items: Sequence[tuple[Task, list[Piece]]]) -> Iterator[tuple[Task, list[Piece]]]:
    """The items; where a tensor begins, its sources and those of the next one are told that they will be read."""
    tasks = list(dict.fromkeys(t for t, _ in items))
    for i, (_, group) in enumerate(groupby(items, key=lambda item: item[0])):
        for task in tasks[i and i + 1 : i + 2]:
            for read in task.reads:
                read.source.ahead(read.name)
        yield from group


def _done(task: Task, parts: Sequence[Sequence[bytes]], mark: str) -> Done:
    columns = [digest.of(c) for c in zip(*parts)] or [""] * (len(task.reads) + 1)
    return Done(task.at.name, tuple(columns[:-1]), columns[-1], mark)


def _count(span: Sequence[Piece]) -> int:
    return span[-1].start + math.prod(span[-1].shape) - span[0].start


def batches(tasks: Sequence[Task], threads: int) -> Iterator[list[Task]]:
    """Tensors whose rounds go side by side."""
    held: list[Task] = []
    count = 0
    for t in tasks:
        held.append(t)
        count += t.numel
        if count >= threads * BATCH:
            yield held
            held, count = [], 0
    if held:
        yield held
