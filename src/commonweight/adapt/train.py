"""Training a tenant on a host, and measuring it: the Python interface."""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..core import CommonweightError, build, dump
from ..host import Host, Tenant
from .base import limit, prepare, tokenizer_of
from .checkpoint import Store, read, same_settings
from .recipe import Recipe
from .rows import Row
from .tasks import Example, Task, get
from .trainer import Progress, Run, quietly


@dataclass(frozen=True)
class Result:
    """tenant: on the host, with the best pools seen. seconds: of this call. steps: in all, resumed ones too.
    curve: {"step", "loss", "dev_..."} per step. metrics: of the dev rows, for the kept pools; {} without dev rows.
    note: what the task did with the rows. settings: what a repeated run must share to give the same bits."""

    tenant: Tenant
    seconds: float
    steps: int
    curve: list[dict[str, float]] = field(repr=False)
    metrics: dict[str, float]
    note: str
    settings: dict[str, Any] = field(repr=False)


def adapt(
    host: Host,
    name: str,
    train_rows: Sequence[Row],
    *,
    task: str = "classify",
    method: str | Any = "lora",
    options: Mapping[str, Any] | None = None,
    labels: Sequence[str] | None = None,
    dev_rows: Sequence[Row] | float | None = None,
    sites: Any = None,
    text_column: str | None = None,
    label_column: str | None = None,
    tokenizer: Any = None,
    checkpoint: str | Path | None = None,
    resume: bool = False,
    progress: Callable[[Progress], None] | None = None,
    sources: tuple[str, str] = ("training rows", "dev rows"),
    **recipe: Any,
) -> Result:
    """Adds a tenant to a host and trains it; the frozen base is loaded once, however many tenants are trained on it.

    train_rows, dev_rows: dicts by column; dev_rows as a fraction takes that share of the training rows. With dev
    rows the best state is kept and training stops early. labels: classes of a classification; None: those of the
    training rows. recipe: fields of `Recipe`. checkpoint: a folder for a run that may be resumed; it is left there.
    sources: what errors call the training and the dev rows.
    Same rows, settings and number of threads: same bits, also when the run was killed and resumed.
    Raises: CommonweightError; the host is then as it was.
    """
    plan = build(Recipe, recipe)
    kind = get(task)
    if not train_rows:
        raise CommonweightError("no rows to train on")
    every = list(train_rows)
    train_rows, dev_rows = split(every, dev_rows, plan.seed)
    whole = every if len(train_rows) < len(every) else None
    if task == "classify" and labels is None:
        labels = named(sources[0], lambda rows: kind.classes(rows, label_column), train_rows, whole)  # type: ignore
    doing = make_task(host, task, labels, tokenizer, plan.max_length, text_column, label_column)
    train = named(sources[0], doing.examples, train_rows, whole)
    note = doing.note
    dev = named(sources[1], doing.examples, dev_rows, whole) if dev_rows else []
    if not train:
        raise CommonweightError(f"{sources[0]}: no row is long enough to learn from")
    started = time.perf_counter()
    tenant = host.add(name, method, sites=sites, seed=plan.seed, labels=doing.labels, **(options or {}))
    try:
        return _run(host, tenant, doing, plan, train, dev, checkpoint, resume, progress, started, note)
    except BaseException:
        host.remove(name)
        raise
    finally:
        host.model.eval()


def _run(
    host: Host, tenant: Tenant, task: Task, recipe: Recipe, train: list[Example], dev: list[Example],
    checkpoint: str | Path | None, resume: bool, progress: Any, started: float, note: str,
) -> Result:  # fmt: skip
    if not tenant.count():
        raise CommonweightError(f"{tenant.method.name} has no trainable number for this task; choose another method")
    settings = _settings(host, tenant, task, recipe, train, dev)
    store = None if checkpoint is None else Store(Path(checkpoint))
    found = store.newest() if store is not None else None
    if found is not None:
        if not resume:
            raise CommonweightError(
                f"{found.parent}: an unfinished run lies there; --resume continues it; or delete the folder"
            )
        same_settings(settings, read(found).facts.get("settings", {}), found.parent)
    rates = build(Recipe, {**_fields(recipe), "lr": recipe.lr or tenant.method.lr})
    with tempfile.TemporaryDirectory() as unused:
        run = quietly(lambda: Run(host, tenant, task, rates, train, dev, settings, store, progress, unused))
        if found is not None:
            run.restore(found)
        if not run.done:
            quietly(lambda: run.train(resume_from_checkpoint=None if found is None else str(found)))
    run.finish()
    name, _ = task.better
    scored = [c for c in run.curve if f"dev_{name}" in c]
    kept = (max if task.better[1] else min)(scored, key=lambda c: c[f"dev_{name}"], default={})
    metrics = {k[4:]: v for k, v in kept.items() if k.startswith("dev_")}
    steps = int(run.curve[-1]["step"]) if run.curve else 0
    return Result(tenant, time.perf_counter() - started, steps, run.curve, metrics, note, settings)


def evaluate(
    host: Host,
    name: str | None,
    rows: Sequence[Row],
    task: str = "classify",
    *,
    labels: Sequence[str] | None = None,
    text_column: str | None = None,
    label_column: str | None = None,
    tokenizer: Any = None,
    max_length: int | None = None,
    batch_size: int = 64,
) -> dict[str, float]:
    """Metrics of a tenant (None: the plain base) on rows. Keys: see the task; `n` is the number of rows.

    Cost: one forward pass over the rows, longest first. Raises: CommonweightError for rows the task cannot read.
    """
    labels = labels if labels is not None or name is None else host[name].labels
    if task == "classify" and labels is None:
        raise CommonweightError(f"{name or 'the plain base'} has no labels; classifying needs a tenant with a head")
    doing = make_task(host, task, labels, tokenizer, max_length, text_column, label_column)
    examples = doing.examples(rows)
    was = host.model.training
    host.model.eval()
    try:
        with torch.no_grad(), host.route(name):
            return doing.measure(host.model, examples, batch_size)
    finally:
        host.model.train(was)


def make_task(
    host: Host,
    task: str,
    labels: Sequence[str] | None,
    tokenizer: Any = None,
    max_length: int | None = None,
    text_column: str | None = None,
    label_column: str | None = None,
) -> Task:
    """A task on a host's model: its tokenizer, unless another is given, and its room for tokens."""
    kind = get(task)
    tokenizer = tokenizer_of(host.model) if tokenizer is None else prepare(tokenizer)
    longest = limit(host.model, tokenizer, max_length, kind.usual_length)
    return kind(tokenizer, longest, labels, text_column, label_column)


def split(rows: list[Row], dev: Sequence[Row] | float | None, seed: int) -> tuple[list[Row], list[Row]]:
    """(training rows, dev rows); a fraction is drawn from the training rows by the seed."""
    if dev is None:
        return rows, []
    if not isinstance(dev, float | int):
        return rows, list(dev)
    if not 0 < dev < 1:
        raise CommonweightError(f"dev={dev}: wanted a fraction of the training rows between 0 and 1, or rows")
    n = max(1, round(dev * len(rows)))
    if n >= len(rows):
        raise CommonweightError(f"dev={dev} of {len(rows)} rows leaves nothing to train on")
    drawn = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()
    chosen = set(drawn[:n])
    return [r for i, r in enumerate(rows) if i not in chosen], [rows[i] for i in sorted(chosen)]


def _settings(host: Host, tenant: Tenant, task: Task, recipe: Recipe, train: list, dev: list) -> dict[str, Any]:
    config = dump(tenant.config)
    config.pop("is")
    numbers = _fields(recipe)
    numbers.pop("checkpoint_every")
    return {
        "task": type(task).__name__.lower(), "method": tenant.method.name, "options": config, **numbers,
        "max_length": task.max_length,
        "dtype": str(next(host.model.parameters()).dtype).removeprefix("torch."), "plan": tenant.plan.digest(),
        "base": host.fingerprint, "train rows": _digest(train), "dev rows": _digest(dev), "labels": task.labels,
    }  # fmt: skip


def _fields(recipe: Recipe) -> dict[str, Any]:
    return {k: getattr(recipe, k) for k in recipe.__dataclass_fields__}  # type: ignore[attr-defined]


def _digest(examples: list[Example]) -> str:
    text = json.dumps(examples).encode()
    return f"{len(examples)} rows {hashlib.blake2b(text, digest_size=8).hexdigest()}" if examples else "none"


def named(what: str, make: Callable[[Any], Any], rows: Sequence[Row], whole: Sequence[Row] | None = None) -> Any:
    """make(rows); an error names where they came from. whole: the rows that these were drawn from: the number of a
    wrong row is its number there."""
    try:
        try:
            return make(rows)
        except CommonweightError:
            if whole is not None:
                make(whole)
            raise
    except CommonweightError as e:
        raise CommonweightError(f"{what}: {e}") from e
