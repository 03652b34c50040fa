"""What a merge would do, in figures, without reading a number."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from ...core import counted, natural
from ..maths import select
from ..registry import Beside, limit
from ..sources.source import INDEX, held
from ..statistics import Statistics
from ..stream import engine, grid
from ..stream.work import Job, Task
from .built import Built
from .files import SHARD, files, index

FLOOR = 160_000_000  # bytes: Python and torch, before anything is read


class Step(NamedTuple):
    """A method with one configuration. rounds: how often all is read before the merge itself, at most."""

    method: str
    options: dict[str, Any]
    tensors: int
    numel: int
    by: str
    survey: str | None


class Plan(NamedTuple):
    """reads: model, or statistics beside it, -> (tensors, bytes; of statistics as float32), read once a pass; writes:
    files of weights, and their index, -> bytes; memory: bound of anonymous bytes.
    """

    reads: dict[str, tuple[int, int]]
    steps: list[Step]
    writes: dict[str, int]
    memory: int
    largest: str | None
    notices: list[str]


def plan(built: Built, threads: int, shard_bytes: int = SHARD) -> Plan:
    """memory: without methods that need whole tensors it does not depend on the model; else `largest` decides."""
    names = {id(s): n for n, s in built.sources.items()}
    tensors: dict[str, dict[str, int]] = {n: {} for n in built.sources}
    for task in built.tasks:
        for r in task.reads:
            tensors[names[id(r.source)]][r.name] = task.numel * r.dtype.itemsize
    steps, seen = [], Counter(t.job for t in sorted(built.tasks, key=lambda t: natural(t.at.name)))
    for job in seen:
        mine = [t for t in built.tasks if t.job is job]
        numel = sum(t.numel for t in mine)
        if job is None:
            steps.append(Step("copy", {}, len(mine), numel, "element", None))
        else:
            steps.append(Step(job.method.name, dict(job.config), len(mine), numel, job.by, job.scope))
    written = files(built, shard_bytes)
    listed = {INDEX: len(index(written))} if len(written) > 1 else {}
    whole = max((t for t in built.tasks if t.job and t.job.by == "tensor"), key=_bytes, default=None)
    pieces = max((_bytes(t) for t in built.tasks if not (t.job and t.job.by == "tensor")), default=0)
    counts = max((_searches([t for t in built.tasks if t.job is job], threads) for job in seen), default=0)
    most = max((math.prod(p.shape) for t in built.tasks for p in _largest(t)), default=0)
    made = sum(held(s, most, threads) for s in built.sources.values())
    return Plan(
        {n: (len(t), sum(t.values())) for n, t in [*tensors.items(), *_beside(built.tasks).items()]},
        steps,
        {s.file: s.size for s in written} | listed,
        FLOOR + max(threads * pieces, _bytes(whole) if whole else 0) + counts + made,
        whole.at.name if whole else None,
        list(built.notices),
    )


def _beside(tasks: Iterable[Task]) -> dict[str, dict[str, int]]:
    """Statistics by their label -> the tensors that are read of them, with their bytes."""
    out: dict[str, dict[str, int]] = {}
    for task in tasks:
        for found, kind in [] if task.job is None else _statistics(task.job):
            read = out.setdefault(found.label, {})
            if found.has(kind, task.at.name):
                key = f"{kind}/{task.at.name}"
                read[key] = 4 * math.prod(found.shapes[key])
    return out


def _statistics(job: Job) -> list[tuple[Statistics, str]]:
    """With the kind that is read of each."""
    asked = {name: limit(hint) for name, (hint, _) in job.method.options().items()}
    given = [(job.config[name], a) for name, a in asked.items() if isinstance(a, Beside)]
    return [(one, a.kind) for value, a in given if value is not None for one in (value if a.each else [value])]


def _bytes(task: Task) -> int:
    """Of one piece: inputs, task vectors, masks, temporaries (of whole tensors also the parts of their decompositions),
    and what the C library keeps between pieces: what no method went beyond when all of them were measured.
    """
    n = max((math.prod(p.shape) for p in _largest(task)), default=0)
    each = 18 if task.job and task.job.by == "tensor" else 12
    return n * 4 * (each * len(task.reads) + 28)


def _searches(tasks: Sequence[Task], threads: int) -> int:
    """Of what is counted where cuts are searched: over the model, or in the tensors of a batch side by side."""
    job = tasks[0].job
    if job is None or job.scope is None or job.method.survey is None or job.method.survey.every is None:
        return 0
    models = len(tasks[0].models)
    if job.scope == "model":
        return select.memory(sum(t.numel for t in tasks), models, 2)
    batches = engine.batches(tasks, threads)
    return max(sum(select.memory(t.numel, models, 2) for t in batch) for batch in batches)


def _largest(task: Task) -> Iterable[grid.Piece]:
    first = next(iter(task.pieces()), None)
    return [] if first is None else [first]


def text(p: Plan) -> str:
    lines = ["reads"]
    lines += [f"  {n}: {counted(t, 'tensor')}, {b:,} bytes" for n, (t, b) in p.reads.items()]
    lines.append("computes")
    for s in p.steps:
        said = ", ".join(f"{k}={_short(v)}" for k, v in s.options.items() if v is not None)
        passes = {None: "one pass", "tensor": "looks at each tensor first, then merges it"}.get(
            s.survey, "looks at the whole model first, in passes of its own"
        )
        piece = {"tensor": "whole tensors", "row": "whole rows"}.get(s.by, "pieces")
        lines.append(
            f"  {s.method} ({said}): {counted(s.tensors, 'tensor')}, {counted(s.numel, 'number')}; {passes}; {piece}"
        )
    lines.append("writes")
    lines += [f"  {f}: {b:,} bytes" for f, b in p.writes.items()]
    bound = f"memory: at most {p.memory:,} bytes"
    lines.append(f"{bound}, for the whole of {p.largest}" if p.largest else f"{bound}, whatever the model's size")
    return "\n".join([*lines, *(f"notice: {n}" for n in p.notices)])


def _short(value: Any) -> str:
    if isinstance(value, tuple) and value and all(v == value[0] for v in value):
        return _short(value[0])
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, Statistics):
        path = re.search(r"\((.+)\)$", value.label)
        return path[1] if path else "as given"
    return "[" + ", ".join(map(_short, value)) + "]" if isinstance(value, tuple) else str(value)
