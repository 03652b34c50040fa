"""A merge into a folder: it appears whole or not at all, and goes on after a kill where it was."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ...core import CommonweightError, library
from ...formats import atomic
from ..plan.built import Built
from ..plan.files import SHARD, Shard, files, index
from ..recipe import load
from ..recipe.build import build
from ..sources.source import INDEX
from ..stream import digest
from ..stream.engine import Engine, Watch
from ..stream.pool import cores
from ..stream.work import Job, Task
from . import card, shards
from . import writing as room
from .journal import Journal
from .place import RECORD, model_folder

_FORMAT = 2  # of the grid and the digests: another one reuses nothing


class Result(NamedTuple):
    """folder: the model; reused: tensors that an earlier run had finished; nbytes: of all weights."""

    folder: Path
    tensors: int
    reused: int
    nbytes: int


def make(recipe: str | Path | Mapping[str, Any], out: str | Path, **how: Any) -> Result:
    """A merge from disk to disk by a recipe: a YAML file (ours or mergekit's), or its content as a mapping.

    `how`: as `write` takes it: resume, overwrite, threads, shard_bytes, watch, say.
    """
    return write(build(load(recipe)), out, **how)


def write(
    built: Built,
    out: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    threads: int | None = None,
    shard_bytes: int = SHARD,
    watch: Watch | None = None,
    say: Callable[[str], None] | None = None,
) -> Result:
    """Writes the merged model: weights, config, tokenizer, card, and where it all came from (merge.json).

    Work goes on in `.OUT.merging` beside it, which is renamed at the end. An error of the input removes it; a kill or
    a full disk leaves it, and resume=True then redoes no tensor whose recipe, inputs and output are, by their digests,
    what they were. overwrite: a model that is at `out` is replaced, once the new one is whole; nothing that is read.
    Raises: CommonweightError when `out` is there already, or another process is making it.
    """
    out, say = Path(out), say or (lambda text: None)
    read = (f for s in built.sources.values() for f in s.files)
    out = model_folder(out, overwrite, [Path(built.recipe.folder), *read])
    atomic.make_folder(out.absolute().parent)
    part = out.absolute().parent / f".{out.name}.merging"
    lock = _lock(part, keep=resume)
    try:
        plan = files(built, shard_bytes, mark := key(built))
        record, reused = _weights(built, mark, part, plan, resume, Engine(threads or cores(), watch), say)
        _finish(built, part, out, plan, record, overwrite)
    except CommonweightError as e:
        if not (room.full(e) or isinstance(e, _Kept)):
            shutil.rmtree(part, ignore_errors=True)
        raise
    finally:
        os.close(lock)
    return Result(out, len(built.tasks), reused, sum(s.size for s in plan))


class _Kept(CommonweightError):
    """What went wrong when all weights were there."""


def key(built: Built) -> str:
    """Digest of all that decides the result, but for the models' numbers: methods, options, names, statistics."""
    jobs = {task.job: _how(task.job) for task in built.tasks}
    return digest.of_value([_FORMAT, *(_describe(task, jobs[task.job]) for task in built.tasks)])


def stamps(built: Built) -> dict[str, list[list[int]]]:
    """Model as the recipe names it -> (bytes, time of the last change) of each of its files."""
    return {n: [[(at := f.stat()).st_size, at.st_mtime_ns] for f in s.files] for n, s in built.sources.items()}


def _weights(
    built: Built,
    mark: str,
    part: Path,
    plan: Sequence[Shard],
    resume: bool,
    engine: Engine,
    say: Callable[[str], None],
) -> tuple[dict[str, Any], int]:
    """(the record of what was read, how many tensors were there already). The weights are then on the disk."""
    began = stamps(built)
    wanted = {s.file for s in plan}
    for old in part.glob("*.safetensors"):
        if old.name not in wanted:
            old.unlink()
    sink = shards.Shards(part, plan)
    for torn in part.glob(".*"):  # files that a killed process was writing
        torn.unlink()
    journal = Journal(part, mark, sink.fresh)
    try:
        known = dict(journal.done)
        if resume:
            say(_resumed(journal, len(known)))
        redone = 0
        for done in engine.run(built.tasks, sink, sink, known):
            journal.add(done)
            redone += 1
        inputs = _inputs(built, journal)
        total = digest.of_value(inputs)
        sink.seal(total)
    finally:
        journal.close()
        sink.close()
    record = {
        "commonweight": library(), "merge": mark, "digest of the inputs": total,
        "recipe": built.recipe.text, "inputs": inputs, "files": began, "notices": list(built.notices),
    }  # fmt: skip
    return record, len(built.tasks) - redone


def _finish(
    built: Built, part: Path, out: Path, plan: Sequence[Shard], record: Mapping[str, Any], overwrite: bool
) -> None:
    try:
        if len(plan) > 1:
            atomic.write(part / INDEX, index(plan))
        atomic.write(part / RECORD, (json.dumps(record, indent=1, ensure_ascii=False) + "\n").encode())
        card.beside(built, part)
        if out.exists() and not overwrite:
            raise CommonweightError(f"{out}: appeared while it was being made; move it")
    except CommonweightError as e:
        raise _Kept(f"{e}; all weights are written: the same command with --resume finishes the merge") from e
    (part / "journal.jsonl").unlink()
    atomic.sync(part)
    atomic.replace_folder(part, out.absolute())


def _resumed(journal: Journal, known: int) -> str:
    if journal.stale:
        return "the recipe is another than that of the unfinished merge: everything is done anew"
    return f"{known} tensors were finished; they are checked against their inputs" if known else "nothing to resume"


def _how(job: Job | None) -> Any:
    """Once for all of its tensors: a digest of values that are plain already is the same, and takes no time."""
    return None if job is None else digest.plain([job.method.name, job.config])


def _describe(task: Task, how: Any) -> list[Any]:
    """All that decides a tensor, but for the numbers themselves."""
    where = [[r.name, list(r.source.shapes[r.name]), str(r.dtype)] for r in task.reads]
    return [*task.at, how, where, len(task.models), str(task.dtype)]


def _inputs(built: Built, journal: Journal) -> dict[str, dict[str, Any]]:
    """Model as the recipe names it -> its files, and one digest of all that was read of it."""
    names = {id(s): n for n, s in built.sources.items()}
    found: dict[str, list[tuple[str, str]]] = {n: [] for n in built.sources}
    for task in built.tasks:
        for read, mark in zip(task.reads, journal.done[task.at.name].inputs):
            found[names[id(read.source)]].append((read.name, mark))
    return {
        n: {"files": [f.name for f in built.sources[n].files], "digest": digest.of_value(sorted(set(marks)))}
        for n, marks in found.items()
    }


def _lock(part: Path, keep: bool) -> int:
    """Makes the folder, or finds it; a process that is at work in it has it locked."""
    part.mkdir(exist_ok=True)
    handle = os.open(part, os.O_RDONLY)
    try:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:
        pass
    except OSError as e:
        os.close(handle)
        raise CommonweightError(f"{part}: another process is at work there; wait for it, or stop it") from e
    if not keep:
        for old in part.iterdir():
            shutil.rmtree(old) if old.is_dir() else old.unlink()
    return handle
