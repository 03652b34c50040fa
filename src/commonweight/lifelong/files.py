"""A stream from files to a store: everything is looked at before the first task is learned."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..adapt import rows
from ..adapt.data import Understood, columns, make_task, reading
from ..adapt.files import look
from ..adapt.job import Source
from ..adapt.recipe import Recipe
from ..adapt.tasks import Seen
from ..adapt.trainer import Progress
from ..commons import Commons
from ..core import CommonweightError, build, own
from ..host import Host
from . import methods
from .record import FILE, folder_of, free, read
from .registry import laid
from .stages import Stream, check, examples, follow
from .stream_file import StreamFile


def run(
    model: str,
    stream: StreamFile,
    store: str | Path,
    *,
    method: str | None = None,
    options: Any = None,
    evaluate: bool = False,
    resume: bool = False,
    dry_run: bool = False,
    say: Callable[[str], None] = print,
    progress: Callable[[Progress], None] | None = None,
    **more: Any,
) -> Stream | None:
    """Learns the tasks of a file, one after another, into a store; see `lifelong.learn`.

    method, options: over the file's. evaluate: measures, after every stage, each task on its ``eval`` rows, else on its
    dev rows. more: numbers of the recipe, and of the base and the rows, over the file's. dry_run: ends before the first
    step, with None.
    """
    numbers = {k: v for k, v in more.items() if k in Recipe.__dataclass_fields__}  # type: ignore[attr-defined]
    how = {k: v for k, v in more.items() if k not in numbers}
    stream = replace(stream, recipe={**own(Recipe, stream.recipe), **numbers}, how={**stream.how, **how})
    name = method or stream.method or "sequential"
    found, config = methods.resolve(name, laid(name, stream.options_of(method), options or {}))
    task = stream.how.get("task", "classify")
    check(found, task)
    kept = Commons(store, make="late")
    folder = folder_of(kept, stream.name)
    free(folder, resume)
    lost = gone(folder, stream) if resume else {}
    here = replace(stream, tasks={n: s for n, s in stream.tasks.items() if n not in lost})
    if not here.tasks:
        raise CommonweightError(f"{folder}: all tasks of the file were learned, and their files are gone")
    job = here.job(*found.adapter(config))
    if evaluate and (without := [n for n, s in stream.tasks.items() if s.eval is None and s.dev is None]):
        raise CommonweightError(
            f"--eval: {without[0]} has neither eval: nor dev: rows to measure on; name some in the file"
        )
    host, data, evals, understood = look(model, job, dry_run=dry_run, say=say)
    if dry_run:
        return None
    recipe = build(Recipe, stream.recipe)
    held = {}
    every = {n: before(host, task, s, lost[n], recipe) if n in lost else understood[n] for n, s in stream.tasks.items()}
    for n, s in stream.tasks.items() if evaluate else ():
        wanted = _measured_on(n, s) if n in lost else evals.get(n)
        where = str(s.eval if wanted is not None else s.dev)
        held[n] = every[n].dev if wanted is None else examples(
            host, task, s if n in lost else data[n], every[n], wanted, where, recipe
        )  # fmt: skip
    return follow(
        host, every, held, found, config, kept, task=task, sites=job.sites, name=stream.name, recipe=recipe,
        resume=resume, say=say, progress=progress, gone=frozenset(lost),
    )  # fmt: skip


def gone(folder: Path, stream: StreamFile) -> dict[str, Any]:
    """Tasks that were learned and whose files are not there any more -> what the record says of their rows. A stream
    goes on without them: what it needs of earlier tasks lies in the store."""
    if not (folder / FILE).is_file():
        return {}
    learned = {s["task"]: s["rows"] for s in read(folder)["stages"]}
    return {n: learned[n] for n, s in stream.tasks.items() if n in learned and not (_there(s.data) and _there(s.dev))}


def _there(name: str | None) -> bool:
    """What has no file's type is a share of rows, a folder, or a data set of the hub."""
    return name is None or Path(name).suffix.lower() not in rows.KINDS or Path(name).exists()


def before(host: Host, task: str, source: Source, said: Any, recipe: Recipe) -> Understood:
    """A task whose rows are gone, as its tenant's head needs it."""
    doing = make_task(host, task, said["labels"], None, recipe.max_length, **reading(source))
    return Understood(doing, [], [], Seen(), Seen())


def _measured_on(name: str, source: Source) -> Any:
    if source.eval is None or not _there(source.eval):
        raise CommonweightError(
            f"--eval: the files of {name}, which was learned before, are gone; name rows that are there as its eval:, "
            "or leave --eval out"
        )
    return rows.read(source.eval, [c for c in columns(source).values() if c], split="test", no_header=source.no_header)
