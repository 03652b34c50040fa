"""A stream's record in its store: what was learned, by which tenants, at what cost, and what was measured."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..adapt.checkpoint import same_settings
from ..commons import Commons
from ..commons.pool import DTYPES
from ..commons.streams import FILE, FOLDER
from ..core import CommonweightError
from ..formats import atomic
from . import metrics

PAGE = "report.html"
_WHOLE = {
    "name": str, "method": str, "paper": str, "adapter": str, "adapter_options": dict, "task": str, "better": list,
    "tasks": list, "stages": list, "untrained": dict, "settings": dict,
}  # fmt: skip
_STAGE = {"task": str, "tenants": dict, "rows": dict, "memory": dict, "bytes": dict}
Record = dict[str, Any]


def folder_of(store: Commons, name: str) -> Path:
    return store.folder / FOLDER / name


def opened(folder: Path, new: Record, *, resume: bool) -> Record:
    """The record to go on with. new: of a stream that begins now.

    Raises: CommonweightError where one lies there that is not to be resumed, or was started with other settings."""
    free(folder, resume)
    path = folder / FILE
    if not path.is_file() or not (resume or read(folder)["stages"]):
        return new
    found = read(folder)
    same_settings(new["settings"], found["settings"], folder)
    return {**found, "tasks": new["tasks"]}


def free(folder: Path, resume: bool) -> None:
    """Raises: CommonweightError where a stream lies that has learned something and is not to be resumed."""
    n = len(read(folder)["stages"]) if (folder / FILE).is_file() and not resume else 0
    if n:
        raise CommonweightError(
            f"{folder}: a stream of {n} learned {'task' if n == 1 else 'tasks'} lies there; --resume goes on with it, "
            "also with further tasks; or take another store, or another name of the file"
        )


def read(folder: Path) -> Record:
    path = folder / FILE
    if not path.is_file():
        raise CommonweightError(
            f"{folder}: no {FILE} there; wanted a store's {FOLDER}/NAME, which adapt --stream writes"
        )
    try:
        found = json.loads(path.read_text("utf-8"))
        _held(found, _WHOLE, "")
        for n, stage in enumerate(found["stages"], 1):
            _held(stage, _STAGE, f"stage {n}: ")
            if not isinstance(stage.get("scores"), dict | None):
                raise ValueError(f"stage {n}: scores: wanted an object or nothing")
        return found
    except (ValueError, KeyError, TypeError) as e:
        raise CommonweightError(f"{path}: cannot be read as a stream ({e})") from e


def _held(found: Any, wanted: Mapping[str, type], where: str) -> None:
    """Raises: ValueError for what is not there or of another kind."""
    if not isinstance(found, dict):
        raise ValueError(f"{where}wanted an object, not {found!r:.40}")
    kinds = {str: "a text", list: "a list", dict: "an object"}
    for key, kind in wanted.items():
        if not isinstance(found.get(key), kind):
            came = f", not {found[key]!r:.40}" if key in found else "; it is not there"
            raise ValueError(f"{where}{key}: wanted {kinds[kind]}{came}")


def same_rows(folder: Path, stage: Mapping[str, Any], name: str, rows: Mapping[str, Any]) -> None:
    """Raises: CommonweightError where a task that was learned is another one now."""
    if stage["task"] != name:
        raise CommonweightError(
            f"{folder}: the stream learned {stage['task']} where the file now has {name}; the order of what was "
            "learned cannot change: put further tasks behind"
        )
    same_settings(dict(rows), dict(stage["rows"]), f"{folder}, task {name}")


def answered(folder: Path, stages: Sequence[Mapping[str, Any]], store: Commons) -> None:
    """Raises: CommonweightError where the store has lost a tenant that answered a task after one of these stages."""
    for stage in stages:
        for task, label in stage["tenants"].items():
            try:
                store.manifest(label)
            except CommonweightError as e:
                raise CommonweightError(
                    f"{folder}: after {stage['task']}, {task} was answered by {label}, which the store has lost ({e}); "
                    "publish it there again, or start the stream in another store"
                ) from e


def write(folder: Path, record: Record) -> Path:
    record = {**record, "summary": summary(record)}
    text = json.dumps(record, ensure_ascii=False, indent=1)
    return atomic.write(folder / FILE, (text + "\n").encode())


def scores(record: Mapping[str, Any]) -> list[list[float | None]]:
    """The matrix: a row for each stage, a column for each task of those stages."""
    names = [s["task"] for s in record["stages"]]
    return [[(s.get("scores") or {}).get(n) for n in names] for s in record["stages"]]


def summary(record: Mapping[str, Any]) -> dict[str, float | None]:
    """{} before anything was measured."""
    held = scores(record)
    if not any(v is not None for row in held for v in row):
        return {}
    names = [s["task"] for s in record["stages"]]
    untrained = [record["untrained"].get(n) for n in names]
    return metrics.summary(held, untrained, record["better"][1])


def spent(store: Commons, labels: Sequence[str], carried: int) -> dict[str, int]:
    """Bytes that the store needs after a stage: pools, each once; manifests and blueprints; what was carried over."""
    found = [store.manifest(label) for label in labels]
    files = {h: c for m in found for h, c in m.files.items()}
    pools = sum(DTYPES[dtype][0] * math.prod(shape) for dtype, shape in files.values())
    blueprints = {m.blueprint.hash: len(m.blueprint.text) for m in found if m.blueprint}
    manifests = sum(len(m.text) for m in found) + sum(blueprints.values())
    return {"pools": pools, "manifests": manifests, "carried": carried, "all": pools + manifests + carried}
