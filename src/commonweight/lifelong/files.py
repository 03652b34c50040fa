"""A stream from files to a store: everything is looked at before the first task is learned."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..adapt.files import look
from ..adapt.recipe import Recipe
from ..adapt.trainer import Progress
from ..commons import Commons
from ..core import CommonweightError, build, own
from . import methods
from .record import folder_of, free
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
    job = stream.job(*found.adapter(config))
    if evaluate and (lost := [n for n, s in stream.tasks.items() if s.eval is None and s.dev is None]):
        raise CommonweightError(
            f"--eval: {lost[0]} has neither eval: nor dev: rows to measure on; name some in the file"
        )
    kept = Commons(store, make="late")
    free(folder_of(kept, stream.name), resume)
    host, data, evals, understood = look(model, job, dry_run=dry_run, say=say)
    if dry_run:
        return None
    recipe = build(Recipe, stream.recipe)
    held = {}
    for n, s in stream.tasks.items() if evaluate else ():
        rows = evals.get(n)
        where = str(s.eval if rows is not None else s.dev)
        held[n] = understood[n].dev if rows is None else examples(
            host, task, data[n], understood[n], rows, where, recipe
        )  # fmt: skip
    return follow(
        host, understood, held, found, config, kept, task=task, sites=job.sites, name=stream.name, recipe=recipe,
        resume=resume, say=say, progress=progress,
    )  # fmt: skip
