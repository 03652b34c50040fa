"""One run from files to files: rows in, `legal.safetensors` and `legal.json` out."""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core import CommonweightError, build, safe
from ..formats import atomic
from ..methods import resolve
from .base import DTYPES, open_host, pick_dtype
from .checkpoint import Store
from .data import make_task, named, split
from .recipe import Recipe
from .rows import Row, read
from .tasks import Classify, get
from .train import Result, adapt, evaluate
from .trainer import Progress


@dataclass(frozen=True)
class Files:
    """What a run leaves behind, and what it measured. evaluated: metrics of the eval file, {} without one."""

    tenant: Path
    report: Path
    result: Result
    evaluated: dict[str, float]


def out_path(out: str | Path) -> Path:
    """The tenant's file, if it can be written. Raises: CommonweightError before anything is trained."""
    path = Path(out)
    if path.suffix != ".safetensors":
        raise CommonweightError(f"--out {out}: wanted a name like {path.stem}.safetensors")
    if path.is_dir():
        raise CommonweightError(f"--out {out} is a folder; wanted the name of a file")
    if not path.parent.is_dir():
        raise CommonweightError(f"--out {out}: the folder {path.parent} does not exist; make it first")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise CommonweightError(f"--out {out}: the folder {path.parent} is not writable")
    return path


def run(
    model: str,
    data: str,
    out: str | Path,
    *,
    task: str = "classify",
    method: str = "mos",
    options: Mapping[str, Any] | None = None,
    tenant: str | None = None,
    eval_file: str | None = None,
    dev: str | None = None,
    dtype: str = "auto",
    sites: str | None = None,
    text_column: str | None = None,
    label_column: str | None = None,
    no_header: bool = False,
    resume: bool = False,
    say: Callable[[str], None] = print,
    progress: Callable[[Progress], None] | None = None,
    **recipe: Any,
) -> Files:
    """Trains one tenant of `model` on `data` and writes it, atomically, when all of it went well.

    Everything that can be wrong with the input is looked at before the first step. While it runs, its state lies in
    ``<out without suffix>.checkpoint/``; a run that was killed is continued with resume=True to the same bits.
    """
    path = out_path(out)
    name = safe(path.stem if tenant is None else tenant)
    get(task)
    resolve(method, options or {})
    numbers = build(Recipe, recipe)
    if dtype not in DTYPES:
        pick_dtype(dtype, "cpu")
    columns = [c for c in (text_column, label_column) if c]
    fraction = _fraction(dev)
    how: dict[str, Any] = {"no_header": no_header, "say": say}
    rows = read(data, columns, **how)
    dev_rows = read(dev, columns, split="validation", **how) if dev is not None and fraction is None else fraction
    eval_rows = read(eval_file, columns, split="test", **how) if eval_file is not None else None
    where = {"text_column": text_column, "label_column": label_column}
    labels = None
    if task == "classify":
        train_rows, _ = split(rows, dev_rows, numbers.seed)
        labels = named(
            data, lambda r: Classify.classes(r, label_column), train_rows, None if fraction is None else rows
        )
    host = open_host(model, task, dtype=dtype, sites=sites)
    if eval_file is not None and eval_rows is not None:
        doing = make_task(host, task, labels, None, numbers.max_length, **where)
        named(eval_file, doing.examples, eval_rows)
    store = path.with_suffix(".checkpoint")
    result = adapt(
        host, name, rows, task=task, method=method, options=options, labels=labels, dev_rows=dev_rows,
        checkpoint=store, resume=resume, progress=progress,
        sources=(data, data if dev is None or fraction is not None else dev), **where, **recipe,
    )  # fmt: skip
    if result.note:
        say(result.note)
    evaluated = _measure(host, name, eval_rows, task, result, where)
    metrics = evaluated or result.metrics
    host.save(name, path, metrics)
    report = path.with_suffix(".json")
    told = {
        "tenant": name, "model": str(model), "data": str(data), "task": task, "sites": sites,
        "parameters": result.tenant.count(), "bytes": path.stat().st_size, "steps": result.steps,
        "seconds": round(result.seconds, 2), "metrics": {"dev": result.metrics, "eval": evaluated},
        "eval": eval_file, "note": result.note, "settings": result.settings, "curve": thin(result.curve),
    }  # fmt: skip
    atomic.write(report, json.dumps(told, indent=2, ensure_ascii=False).encode())
    for torn in (t for whole in (path, report) for t in path.parent.glob(f".{glob.escape(whole.name)}.*")):
        torn.unlink(missing_ok=True)  # what a killed run of this name left
    Store(store).clear()
    return Files(path, report, result, evaluated)


def _measure(host: Any, name: str, rows: list[Row] | None, task: str, result: Result, where: dict) -> dict[str, float]:
    if rows is None:
        return {}
    return evaluate(host, name, rows, task, max_length=result.settings["max_length"], **where)


def _fraction(dev: str | None) -> float | None:
    """0.1 from "0.1"; None for a file's name. A file may be called 0.1 only with a folder before it."""
    try:
        return None if dev is None else float(dev)
    except ValueError:
        return None


def thin(curve: list[dict[str, float]], most: int = 200) -> list[dict[str, float]]:
    """At most about `most` points, those with dev metrics all kept; each loss the mean since the point before."""
    step = -(-len(curve) // most) if curve else 1
    out, losses = [], []
    for i, point in enumerate(curve, 1):
        losses.append(point["loss"])
        if i % step == 0 or i == len(curve) or len(point) > 2:
            out.append({**point, "loss": round(sum(losses) / len(losses), 5)})
            losses = []
    return out
