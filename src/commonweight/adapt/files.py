"""One run from files to files: rows in, tenants and a report of what happened out."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from ..core import build, safe
from ..formats import atomic, coding, native
from ..host import Host, Tenant
from ..host.files import encode, settle
from . import beside, processes, standing
from .added import room
from .base import open_host, take_tokenizer, where
from .checkpoint import Store
from .data import Data, Understood, make_task, named, reading, split
from .job import Job, Source, check, choices, read_all
from .place import out_path
from .preview import preview, tally
from .recipe import Recipe
from .rows import Row
from .shard import sharded
from .target import InFiles, Metrics, Target, Written, resumes
from .train import Result, evaluate, shown, train_understood, understand
from .trainer import Progress


@dataclass(frozen=True)
class Files:
    """What a run leaves behind, and what it measured. evaluated: metrics of the eval file, {} without one."""

    tenant: Path
    report: Path
    result: Result
    evaluated: dict[str, float]


@dataclass(frozen=True)
class Outcome:
    """One tenant of a run: what came of it, what it measured on its eval file ({} without one), where it lies."""

    result: Result
    evaluated: dict[str, float]
    written: Written


def run(
    model: str,
    data: str,
    out: str | Path,
    *,
    tenant: str | None = None,
    eval_file: str | None = None,
    dev: str | None = None,
    retain: str | None = None,
    text_column: str | None = None,
    label_column: str | None = None,
    prompt_column: str | None = None,
    completion_column: str | None = None,
    truncation_side: str | None = None,
    reward: Any = None,
    task_column: str | None = None,
    no_header: bool = False,
    task: str = "classify",
    method: str = "mos",
    options: Mapping[str, Any] | None = None,
    dtype: str = "auto",
    device: str = "auto",
    quantize: str | None = None,
    shard: bool = False,
    device_map: Any = None,
    liger: bool = False,
    sites: str | None = None,
    modules_to_save: Any = None,
    token_rows: Any = None,
    codec: str | None = None,
    tokenizer: str | None = None,
    over: Sequence[str] = (),
    resume: bool = False,
    overwrite: bool = False,
    say: Callable[[str], None] = print,
    progress: Callable[[Progress], None] | None = None,
    **recipe: Any,
) -> Files:
    """Trains one tenant of `model` on `data` and writes it, atomically, when all of it went well; then measures it and
    writes what was measured into it.

    Everything that can be wrong with the input is looked at before the first step. While it runs, its state lies in
    ``<out without suffix>.checkpoint/``; a run that was killed is continued with resume=True to the same bits.
    overwrite: a file that is there already is replaced. over: files of tenants, for a method that weighs them.
    tokenizer: a folder or name, in place of the base's own. codec: stores the pools in fewer bytes, see `Host.save`;
    what is measured at the end is what the file holds.
    """
    path = Path(out)
    name = safe(path.stem if tenant is None else tenant)
    checkpoint, report = path.with_suffix(".checkpoint"), path.with_suffix(".json")
    source = Source(
        data=data, dev=dev, retain=retain, eval=eval_file, text_column=text_column, label_column=label_column,
        prompt_column=prompt_column, completion_column=completion_column, truncation_side=truncation_side,
        reward=reward, task_column=task_column, no_header=no_header,
    )  # fmt: skip
    job = Job(
        tenants={name: source}, task=task, method=method, options=options or {}, sites=sites,
        modules_to_save=modules_to_save, token_rows=token_rows, dtype=dtype, device=device, quantize=quantize,
        shard=shard, device_map=device_map, liger=liger, codec=codec, tokenizer=tokenizer, over=over, recipe=recipe,
    )  # fmt: skip
    check(job)
    again = resume and resumes(report, checkpoint, str(model), job)
    out_path(path, overwrite or again)
    target = InFiles({name: path}, checkpoint, report)
    bring = standing.bringing(over, None)
    found = train(model, job, target, bring=bring, resume=resume, say=say, progress=progress)[name]
    return Files(path, target.report, found.result, found.evaluated)


def train(
    model: str,
    job: Job,
    target: Target,
    *,
    bring: Callable[[Host], None] = lambda _: None,
    said: Any = None,
    resume: bool = False,
    say: Callable[[str], None] = print,
    progress: Callable[[Progress], None] | None = None,
) -> dict[str, Outcome]:
    """Reads, looks at everything, trains, writes, measures, and writes what was measured. bring: what the host needs
    first. said: the codec of a common that is there already."""
    host, data, evals, given = look(model, job, bring=bring, said=said, say=say)
    numbers = build(Recipe, job.recipe)
    results = train_understood(
        host, given, numbers, task=job.task, options=job.options, checkpoint=target.checkpoint,
        resume=resume, progress=progress, **_how(job),
    )  # fmt: skip
    if not (processes.first() or sharded(host.model)):
        processes.wait()
        return {n: Outcome(r, {}, NOWHERE) for n, r in results.items()}
    codecs = {}
    for name, result in results.items():
        codecs[name] = codec_of(result.tenant, job.codec, said)
        settle(result.tenant, codecs[name])
    coded = job.codec is not None  # then what was measured in training is not what is written
    written = _write(target, host, {n: {} if coded else r.metrics for n, r in results.items()}, codecs)
    evaluated = {}
    for name, result in results.items():
        d = data[name]
        if coded:
            _, held = split(list(d.rows), d.dev, numbers.seed)
            results[name] = replace(result, metrics=_measure(host, name, held or None, job, result))
        evaluated[name] = _measure(host, name, evals.get(name), job, result)
    if coded or any(evaluated.values()):
        written = _write(target, host, {n: evaluated[n] or r.metrics for n, r in results.items()}, codecs)
    if not processes.first():
        processes.wait()
        return {n: Outcome(r, evaluated[n], NOWHERE) for n, r in results.items()}
    for notice in target.notices:
        say(f"notice: {notice}")
    out = {n: Outcome(r, evaluated[n], written[n]) for n, r in results.items()}
    if target.report is not None:
        told = [_told(n, model, job, out[n]) for n in out]
        several = {"model": str(model), "common": job.common, "tenants": {t["tenant"]: t for t in told}}
        atomic.write(
            target.report, json.dumps(told[0] if len(told) == 1 else several, indent=2, ensure_ascii=False).encode()
        )
    Store(target.checkpoint).clear()
    processes.wait()
    return out


def _write(target: Target, host: Host, metrics: Metrics, codecs: Mapping[str, Any]) -> dict[str, Written]:
    """The first process writes; of a sharded base the others take part in reading it."""
    if processes.first():
        return target.write(host, metrics, codecs)
    for name in metrics:
        encode(host.base, host[name], metrics[name], codecs[name])
    return {}


NOWHERE = Written("", 0, 0, 0, 0)  # of a process that is not the first


class Looked(NamedTuple):
    """A run before its first step."""

    host: Host
    data: dict[str, Data]
    evals: dict[str, list[Row]]
    given: dict[str, Understood]


def look(
    model: str,
    job: Job,
    *,
    bring: Callable[[Host], None] = lambda _: None,
    said: Any = None,
    dry_run: bool = False,
    say: Callable[[str], None] = print,
) -> Looked:
    """All of a run up to its first step: whatever can be wrong with the input is found, and what the rows became is
    told. dry_run: nothing follows, so each tenant is also tried on the host. Nothing is written.
    """
    check(job)
    data, evals = read_all(job, say)
    host = open_host(
        model, job.task, dtype=job.dtype, pool=job.pool, device=job.device, quantize=job.quantize, shard=job.shard,
        device_map=job.device_map, liger=job.liger,
    )  # fmt: skip
    if job.tokenizer is not None:
        take_tokenizer(host.model, job.tokenizer)
    say(where(host))
    if (asked := processes.alone_of()) > 1:
        say(processes.told(asked))
    held = beside.modules(job.modules_to_save)
    bring(host)
    if not job.over:
        say(host.coverage(job.method or "mos", job.sites, modules_to_save=held, **job.options).line)
    if job.over:
        say(f"over {', '.join(job.over)}, which are frozen")
    numbers = build(Recipe, job.recipe)
    given = understand(host, data, job.task, numbers)
    for name, u in given.items():
        say((f"{name}: " if len(given) > 1 else "") + preview(data[name], u))
    for name, rows in evals.items():
        d = data[name]
        doing = make_task(host, job.task, d.labels, None, numbers.max_length, **reading(d))
        made = named(str(job.tenants[name].eval), doing.examples, rows)
        say(tally(str(job.tenants[name].eval), doing, made))
    # a codec may not take every pool of this method
    for name, d in data.items() if dry_run or job.codec is not None else ():
        how = {**_how(job), "token_rows": room(host, _how(job)["token_rows"])}
        seen: dict[str, Any] = shown(how["method"], job.options, given[name], numbers)
        tenant = host.add(name, labels=d.labels if job.task == "classify" else None, **how, **seen, **job.options)
        settle(tenant, codec_of(tenant, job.codec, said))
        host.remove(name)
        del tenant
    return Looked(host, data, evals, given)


def _how(job: Job) -> dict[str, Any]:
    return {
        "method": job.method or "mos", "sites": job.sites, "common": job.common,
        "modules_to_save": beside.modules(job.modules_to_save), "token_rows": beside.rows(job.token_rows),
        "over": [standing.named(o) for o in job.over] or None,
    }  # fmt: skip


def codec_of(tenant: Tenant, codec: Any, said: Any = None) -> Any:
    """For a tenant's own pools; those of a frozen common as they were coded before."""
    if tenant.common is None or not tenant.common.frozen:
        return codec
    return coding.of_its_own(tenant.plan, native.layout(tenant.plan), codec, said)


def _told(name: str, model: str, job: Job, out: Outcome) -> dict[str, Any]:
    r, s = out.result, job.tenants[name]
    return {
        "tenant": name, "model": str(model), **choices(job, name),
        "parameters": r.tenant.count(), "bytes": out.written.nbytes, "steps": r.steps,
        "seconds": round(r.seconds, 2), "metrics": {"dev": r.metrics, "eval": out.evaluated},
        "eval": s.eval, "note": r.note, "settings": r.settings, "curve": thin(r.curve),
    }  # fmt: skip


def _measure(host: Host, name: str, rows: list[Row] | None, job: Job, result: Result) -> dict[str, float]:
    if rows is None:
        return {}
    s, recipe = job.tenants[name], build(Recipe, job.recipe)
    return evaluate(
        host, name, rows, job.task, max_length=result.settings["max_length"], batch_size=recipe.eval_rows,
        completion_length=recipe.completion_length, **reading(s),
    )  # fmt: skip


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
