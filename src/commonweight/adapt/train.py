"""Training a tenant on a host, and measuring it: the Python interface."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from ..core import CommonweightError, WrongTask, build
from ..core.schedule import resizing
from ..host import Host, Tenant
from ..host.over import over_tenants
from ..methods import resolve
from ..methods.shown import Shown
from . import processes
from .added import behind, known, room
from .begun import begun
from .by_row import by_row
from .by_task import answering, know
from .compiled import compiled
from .data import Data, Understood, examples, make_task
from .loop import loop
from .masked import masked
from .names import PREFERENCES
from .offload import mapped
from .penalties import routed
from .preferences import train as train_preference
from .recipe import Recipe
from .recompute import recomputed
from .rows import Row
from .settings import settings
from .shard import sharded
from .tasks import Prompts
from .tasks.base import rows_of
from .tasks.packing import sound
from .trainer import Part, Progress, heard, quietly


@dataclass(frozen=True)
class Result:
    """tenant: on the host, with the best pools seen. seconds: of this call. steps: in all, resumed ones too.
    curve: {"step", "loss", "dev_..."} per step. metrics: of the dev rows, for the kept pools; {} without dev rows.
    note: what the task did with the rows. settings: what a repeated run must share to give the same bits.
    Of tenants trained together, seconds, steps, curve and settings are those of all."""

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
    common: str | None = None,
    labels: Sequence[str] | None = None,
    dev_rows: Sequence[Row] | float | None = None,
    sites: Any = None,
    modules_to_save: Any = None,
    token_rows: Any = None,
    over: Sequence[str] | None = None,
    text_column: str | None = None,
    label_column: str | None = None,
    prompt_column: str | None = None,
    completion_column: str | None = None,
    truncation_side: str | None = None,
    reward: Any = None,
    task_column: str | None = None,
    retain: Sequence[Row] = (),
    tokenizer: Any = None,
    checkpoint: str | Path | None = None,
    resume: bool = False,
    progress: Callable[[Progress], None] | None = None,
    sources: tuple[str, str] = ("training rows", "dev rows"),
    **recipe: Any,
) -> Result:
    """Adds a tenant to a host and trains it. The frozen base is loaded once, for any number of tenants.

    train_rows, dev_rows: dicts by column; a fraction as dev_rows holds out that share of the training rows. With dev
    rows, the best state is kept and training stops early. labels: the classes (None: those of the training rows).
    common: as in `Host.add`; with a frozen one, only the tenant's own pools are trained. modules_to_save, token_rows:
    over: as in `Host.add`. retain: rows of which a method keeps what the model makes (`salora`, `corda` as kpm).
    task_column: of a classification, for methods that go by tasks. recipe: fields of `Recipe`.
    checkpoint: a folder from which a killed run can be resumed; it is not deleted. sources: names of the training and
    dev rows in error messages.
    The same rows, settings and number of threads give the same result, bit for bit, also after a kill and a resume.
    Raises: CommonweightError; the host is then unchanged.
    """
    data = Data(
        rows=train_rows, dev=dev_rows, labels=labels, text_column=text_column, label_column=label_column,
        prompt_column=prompt_column, completion_column=completion_column, truncation_side=truncation_side,
        reward=reward, task_column=task_column, retain=retain, sources=sources,
    )  # fmt: skip
    more: dict[str, Any] = {"checkpoint": checkpoint, "resume": resume, "progress": progress, **recipe}
    more |= {"modules_to_save": modules_to_save, "token_rows": token_rows, "over": over}
    return adapt_together(
        host, {name: data}, task=task, method=method, options=options, common=common, sites=sites,
        tokenizer=tokenizer, **more,
    )[name]  # fmt: skip


def adapt_together(
    host: Host,
    tenants: Mapping[str, Data],
    *,
    task: str = "classify",
    method: str | Any = "lora",
    options: Mapping[str, Any] | None = None,
    common: str | None = None,
    sites: Any = None,
    modules_to_save: Any = None,
    token_rows: Any = None,
    over: Sequence[str] | None = None,
    tokenizer: Any = None,
    checkpoint: str | Path | None = None,
    resume: bool = False,
    progress: Callable[[Progress], None] | None = None,
    **recipe: Any,
) -> dict[str, Result]:
    """Trains several tenants at once, in mixed batches. With a `common`, all of them train the shared pools.

    tenants: name -> its rows. Each tenant has its own pools, head and dev score. The mean of the scores decides which
    state is kept and when training stops. Recipe.temperature sets how often rows of small tenants are shown. With the
    task embed, a batch has rows of one tenant, because its other rows are the negatives. Tenants of a common draw
    random numbers from (seed, name), so they read different parts of a pool.
    Cost of a step: that of one tenant on the same number of rows, and the stacking of private pools per row.
    Raises: CommonweightError; the host is then as it was.
    """
    plan = build(Recipe, recipe)
    given = understand(host, tenants, task, plan, tokenizer)
    return train_understood(
        host, given, plan, task=task, method=method, options=options, common=common, sites=sites,
        modules_to_save=modules_to_save, token_rows=token_rows, over=over, checkpoint=checkpoint, resume=resume,
        progress=progress,
    )  # fmt: skip


def understand(
    host: Host, tenants: Mapping[str, Data], task: str, recipe: Recipe, tokenizer: Any = None
) -> dict[str, Understood]:
    """The examples of each tenant. Raises: CommonweightError for rows that the task cannot read."""
    if not tenants:
        raise CommonweightError("no tenants to train")
    several = len(tenants) > 1
    return {n: examples(host, n if several else "", d, task, recipe, tokenizer) for n, d in tenants.items()}


def train_understood(
    host: Host,
    given: Mapping[str, Understood],
    plan: Recipe,
    *,
    task: str = "classify",
    method: str | Any = "lora",
    options: Mapping[str, Any] | None = None,
    common: str | None = None,
    sites: Any = None,
    modules_to_save: Any = None,
    token_rows: Any = None,
    over: Sequence[str] | None = None,
    checkpoint: str | Path | None = None,
    resume: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> dict[str, Result]:
    """`adapt_together` from the examples on."""
    started = time.perf_counter()
    tokenizer = getattr(next(iter(given.values())).task, "tokenizer", None)
    token_rows = room(host, token_rows, tokenizer)
    if tokenizer is not None:
        known(host, tokenizer, {n: [*u.train, *u.dev] for n, u in given.items()})
    parts: list[Part] = []
    there = [] if common is None or common not in host.roster.commons else [*host.common(common).parameters()]
    before = [p.detach().clone() for p in there]  # others read them
    try:
        for name, (doing, train, dev, *_) in given.items():
            seed = plan.seed if common is None else draws(plan.seed, name)
            tenant = host.add(
                name, method, sites=sites, seed=seed, labels=doing.labels, common=common,
                modules_to_save=modules_to_save, token_rows=token_rows, over=over,
                **shown(method, options, given[name], plan), **(options or {}),
            )  # fmt: skip
            begun(tenant, doing, train)
            if plan.packing and (pack := getattr(doing, "pack", None)) is not None:
                train = pack(train)
            parts.append(Part(tenant, doing, train, dev, given[name].kept))
            know(tenant, doing, train, dev, given[name].kept)
            if not tenant.count():
                raise CommonweightError(
                    f"{tenant.method.name} has no trainable number for this task; choose another method"
                )
        run = train_parts(host, task, parts, plan, checkpoint, resume, progress)
    except BaseException:
        for p in parts:
            host.remove(p.tenant.name)
        with torch.no_grad():
            for pool, was in zip(there, before):
                pool.copy_(was)
        raise
    finally:
        host.model.eval()
    ends = [p.scheduled or p.tenant.method.at_end for p in parts]
    parts = [replace(p, tenant=host.compact(p.tenant.name)) if e else p for e, p in zip(ends, parts)]
    seconds = time.perf_counter() - started
    return {p.tenant.name: _result(run, p, seconds, given[p.tenant.name].note) for p in parts}


def shown(method: Any, options: Mapping[str, Any] | None, given: Understood, recipe: Recipe) -> dict[str, Shown]:
    """The first rows of a training, for a method that begins from data, and the first of those to keep.

    Raises: CommonweightError for rows to keep that the method does not ask for, and where it has none."""
    if over_tenants(method):
        return {}
    found, config = resolve(method, options or {})
    task, n, out = given.task, recipe.batch_size, {}
    if given.kept and not found.kept(config):
        raise CommonweightError(f"retain: {found.name} does not ask for rows to keep; leave retain out")
    for name, asked, rows in (("rows", found.asks(config), given.train), ("retain", found.kept(config), given.kept)):
        if asked and rows:
            first = rows[: recipe.rows_shown]
            out[name] = Shown([task.collate(first[i : i + n]) for i in range(0, len(first), n)], task.loss)
    return out


def draws(seed: int, name: str) -> int:
    """The seed of a tenant of a common."""
    return int.from_bytes(hashlib.blake2b(f"{seed} {name}".encode(), digest_size=4).digest())


def train_parts(
    host: Host, task: str, parts: list[Part], recipe: Recipe, checkpoint: str | Path | None, resume: bool, progress: Any
) -> Any:
    """A `Run`, or a preference's `Loop`, of tenants that are there."""
    if processes.world() > 1 and (task == "embed" or task in PREFERENCES):
        why = "the other rows of a batch are its negatives" if task == "embed" else "TRL's loop is run in one"
        raise CommonweightError(f"the task {task} in {processes.world()} processes: {why}; start it in one process")
    for p in parts:
        behind(host, p.tenant, {f"{p.tenant.name}, training rows": p.train, f"{p.tenant.name}, dev rows": p.dev})
    if task in PREFERENCES and mapped(host.model):
        raise CommonweightError(f"the task {task} with a device map: TRL's loop moves the model; leave the map out")
    if task in PREFERENCES:
        with quicker(host, parts, recipe):
            return _preference(host, task, parts, recipe, resume, progress)
    with ExitStack() as within:
        within.enter_context(quicker(host, parts, recipe))
        for way in (by_row, masked) if recipe.packing else ():
            within.enter_context(way(host.model))
        for part in parts if recipe.packing else ():
            packs(host, part.tenant)
        around = recomputed(host) if recipe.gradient_checkpointing else nullcontext()
        return loop(host, parts, recipe, settings(host, parts, recipe), checkpoint, resume, progress, around)


def quicker(host: Host, parts: list[Part], recipe: Recipe) -> AbstractContextManager[None]:
    """Compiled, where that was asked for. Raises: CommonweightError for what does not go together with it."""
    if not recipe.compile:
        return nullcontext()
    reasons = {
        "gradient_checkpointing": recipe.gradient_checkpointing,
        "routers that are listened to, or states, which the compiler would not see": any(heard(p) for p in parts),
        "a schedule that gives pools other shapes": any(resizing(p.between) for p in parts),
        "several tenants, whose rows mix anew in every batch": len(parts) > 1,
        "a sharded base": sharded(host.model),
        "a device map": mapped(host.model),
    }
    if against := [what for what, there in reasons.items() if there]:
        raise CommonweightError(f"compile does not go together with {against[0]}; leave one of the two out")
    return compiled(host)


def _preference(host: Host, task: str, parts: list[Part], recipe: Recipe, resume: bool, progress: Any) -> Any:
    if len(parts) > 1:
        raise CommonweightError(f"the task {task} trains one tenant at a time; run it for each")
    if parts[0].scheduled or parts[0].tenant.method.penalty or routed(parts[0].tenant):
        name = parts[0].tenant.method.name
        raise CommonweightError(f"{name} has a schedule or a penalty, and the task {task} runs in TRL's loop")
    if resume:
        raise CommonweightError(f"the task {task} runs in TRL's loop, whose state is not kept; start it without resume")
    if recipe.gradient_checkpointing:
        with recomputed(host):
            return quietly(
                lambda: train_preference(host, parts[0], task, recipe, settings(host, parts, recipe), progress)
            )
    return quietly(lambda: train_preference(host, parts[0], task, recipe, settings(host, parts, recipe), progress))


def packs(host: Host, tenant: Tenant) -> None:
    """Raises: CommonweightError where packed rows would not be what they are alone."""
    if not tenant.packs:
        raise CommonweightError(
            f"packing: {tenant.method.name} edits positions of a sequence, and a packed one has many rows; leave it out"
        )
    host.model.eval()
    with host.route(tenant.name):
        sound(host.model)


def _result(run: Any, part: Part, seconds: float, note: str) -> Result:
    name, more = run.task.better
    scored = [c for c in run.curve if f"dev_{name}" in c]
    kept = (max if more else min)(scored, key=lambda c: c[f"dev_{name}"], default={})
    before = f"dev_{part.tenant.name}/" if len(run.parts) > 1 else "dev_"
    metrics = {k.removeprefix(before): v for k, v in kept.items() if k.startswith(before)}
    if metrics:
        metrics["n"] = rows_of(part.dev)
    steps = int(run.curve[-1]["step"]) if run.curve else 0
    return Result(part.tenant, seconds, steps, run.curve, metrics, note, run.settings)


def evaluate(
    host: Host,
    name: str | None,
    rows: Sequence[Row],
    task: str = "classify",
    *,
    labels: Sequence[str] | None = None,
    text_column: str | None = None,
    label_column: str | None = None,
    prompt_column: str | None = None,
    completion_column: str | None = None,
    truncation_side: str | None = None,
    reward: Any = None,
    task_column: str | None = None,
    tokenizer: Any = None,
    max_length: int | None = None,
    completion_length: int | None = None,
    batch_size: int = 32,
) -> dict[str, float]:
    """Metrics of a tenant (None: the plain base) on rows. The keys depend on the task; `n` is the number of rows.

    Cost: one forward pass over the rows, longest first. Raises: CommonweightError for rows the task cannot read.
    """
    labels = labels if labels is not None or name is None else host[name].labels
    if task == "classify" and labels is None:
        raise CommonweightError(f"{name or 'the plain base'} has no labels; classifying needs a tenant with a head")
    doing = make_task(
        host, task, labels, tokenizer, max_length, text_column=text_column, label_column=label_column,
        prompt_column=prompt_column, completion_column=completion_column, truncation_side=truncation_side,
        reward=reward, task_column=task_column,
    )  # fmt: skip
    if isinstance(doing, Prompts) and completion_length is not None:
        doing.answer_length = completion_length
    rows_ = doing.examples(rows)
    if name is None and task_column is not None:
        raise WrongTask("task_column: the plain base knows no tasks; leave the column out")
    if name is not None:
        know(host[name], doing, rows_)
    was = host.model.training
    host.model.eval()
    try:
        with torch.no_grad(), answering(host, name) as model:
            return doing.measure(model, rows_, batch_size)
    finally:
        host.model.train(was)
