"""The comparison itself: fit, tune, run. Every finished run is in the cache; the same call goes on from there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from ..adapt import Recipe
from ..adapt.data import Data as Rows
from ..adapt.data import examples, named
from ..core import CommonweightError, build
from ..core.peers import said
from ..host import Host
from ..methods import get, resolve
from ..workers import Workers
from .budget import Fit, fit
from .cache import Cache
from .job import Job
from .run import execute, opened, rows
from .settings import DEFAULT, Comparison
from .tune import tune


class Config(NamedTuple):
    """A method at a size. budgets: those it is the answer to; equal answers are one config."""

    fit: Fit
    budgets: tuple[str, ...]


class Progress(NamedTuple):
    """stage: "tune" or "run". done: of `total` jobs, those of earlier calls too. label: what has just ended."""

    stage: str
    done: int
    total: int
    label: str = ""
    score: float | None = None


class Outcome(NamedTuple):
    """configs, misfits, left_out: see `Choice`. runs: (config, task, record) of every run. tunings: (config, task) ->
    what `tune` returned. cached: how many of the runs were there before."""

    comparison: Comparison
    configs: tuple[Config, ...]
    misfits: tuple[tuple[str, Fit], ...]
    left_out: tuple[tuple[str, str], ...]
    runs: tuple[tuple[int, str, dict[str, Any]], ...]
    tunings: dict[tuple[int, str], dict[str, Any]]
    cached: int


class Choice(NamedTuple):
    """configs: in the order of methods and budgets. misfits: budgets that a method cannot meet, with its smallest
    config. left_out: methods that have no config at all on these sites, and why."""

    configs: tuple[Config, ...]
    misfits: tuple[tuple[str, Fit], ...]
    left_out: tuple[tuple[str, str], ...]


def choose(c: Comparison, host: Host) -> Choice:
    """The config of every method for every budget. Raises: CommonweightError when there is none at all."""
    found: dict[tuple[str, str], tuple[Fit, list[str]]] = {}
    misfits: list[tuple[str, Fit]] = []
    left_out = []
    for name in c.methods:
        options = {**said(name), **c.options.get(name, {})}
        method, config = resolve(name, options)
        try:
            sites = host.sites_for(method.of(config), c.sites)
            fits = [(text, fit(name, sites, size, options, c.codec)) for text, size in c.limits if size is not None]
            for text, one in fits:
                if one.within:
                    found.setdefault((name, str(sorted(one.options.items()))), (one, []))[1].append(text)
                else:
                    misfits.append((text, one))
            if (DEFAULT, None) in c.limits and not any(one.within for _, one in fits):
                found[name, ""] = (_default(name, sites, options, c.codec), [DEFAULT])
        except CommonweightError as e:
            left_out.append((name, str(e)))
    if not found and misfits:
        nearest = min((one for _, one in misfits), key=lambda f: f.nbytes)
        raise CommonweightError(
            f"no method has a config within {' or '.join(c.budgets)}; the nearest possible is {nearest} with "
            f"{nearest.nbytes:,} bytes; raise --budgets, name default among them, or take fewer "
            "--sites"
        )
    if not found:
        raise CommonweightError(left_out[0][1])
    configs = tuple(Config(one, tuple(budgets)) for one, budgets in found.values())
    return Choice(configs, tuple(misfits), tuple(left_out))


def _default(name: str, sites: Sequence[Any], options: dict[str, Any], codec: str | None) -> Fit:
    """The method as it is by default: its size options pinned, nothing is searched."""
    config = get(name).config(**options)
    pinned = {n.lstrip("-"): getattr(config, n.lstrip("-")) for n in get(name).sizes}
    return fit(name, sites, 1 << 62, {**pinned, **options}, codec)


def compare(
    c: Comparison,
    workers: Workers,
    cache: Cache,
    say: Callable[[str], None] = print,
    progress: Callable[[Progress], None] | None = None,
) -> Outcome:
    """Runs every method, budget, task and seed, at equal bytes and with equal numbers of learning-rate trials.

    Files, methods and budgets are checked before the first step. Cost: methods x budgets x tasks x (trials + seeds)
    runs, minus those in the cache. Raises: CommonweightError. After KeyboardInterrupt, finished runs are in the
    cache.
    """
    host = opened(c.model, c.task, c.dtype)
    check(c, host)
    chosen, misfits, left_out = choose(c, host)
    for name, why in left_out:
        say(f"{name} is left out: {why}")
    for text, one in misfits:
        say(f"{text}: {one.method} has no config so small; the nearest possible is {one} with {one.nbytes:,} bytes")
    base = host.fingerprint
    jobs = [
        (i, d.name, Job(c.model, d, config.fit.method, config.fit.options, 0, None, c.task, c.recipe, c.dtype, c.sites,
                        c.text_column, c.label_column, c.codec))
        for i, config in enumerate(chosen) for d in c.data
    ]  # fmt: skip
    tell = progress or (lambda _: None)
    tunings = dict(_tuned(c, jobs, workers, cache, tell))
    runs = [(i, task, replace(job, lr=tunings[i, task]["lr"], seed=s)) for s in range(c.seeds) for i, task, job in jobs]
    keys = [job.key(host, base) for *_, job in runs]
    there = [cache.get(k) for k in keys]
    records: list[dict[str, Any] | None] = list(there)
    todo = [n for n, record in enumerate(records) if record is None]
    tell(Progress("run", len(runs) - len(todo), len(runs)))
    for at, record in workers(partial(_execute, cache=cache.folder), [runs[n][2] for n in todo]):
        n = todo[at]
        if record["key"] != keys[n]:
            raise CommonweightError(f"{c.model}: a worker's base, data or version is not that of this machine")
        if keys[n] not in cache:
            cache.put(record)
        records[n] = record
        ended = len(runs) - sum(r is None for r in records)
        tell(Progress("run", ended, len(runs), _label(runs[n][2]), _score(record)))
    done = tuple((i, task, r) for (i, task, _), r in zip(runs, records) if r is not None)
    return Outcome(c, chosen, misfits, left_out, done, tunings, len(runs) - len(todo))


def _tuned(
    c: Comparison, jobs: Sequence[tuple[int, str, Job]], workers: Workers, cache: Cache, tell: Callable
) -> Iterator[tuple[tuple[int, str], dict[str, Any]]]:
    if not c.trials:
        yield from (((i, task), tune(job, 0)) for i, task, job in jobs)
        return
    tried = [one for one in jobs if c.tune_on in (None, one[1])]
    tell(Progress("tune", 0, len(tried)))
    work = partial(_tune, trials=c.trials, cache=cache.folder)
    for n, (at, found) in enumerate(workers(work, [job for *_, job in tried]), 1):
        i, task, job = tried[at]
        tell(Progress("tune", n, len(tried), f"{_label(replace(job, trial=True))}, lr {found['lr']:.2g}"))
        yield (i, task), found
        if c.tune_on is not None:
            yield from (((i, d.name), {"lr": found["lr"], "trials": []}) for d in c.data if d.name != task)


def _execute(job: Job, cache: Path) -> dict[str, Any]:
    return execute(job, Cache(cache))


def _tune(job: Job, trials: int, cache: Path) -> dict[str, Any]:
    return tune(job, trials, Cache(cache))


def _label(job: Job) -> str:
    options = " ".join(f"{k}={v}" for k, v in job.options.items())
    seed = "" if job.trial else f"seed {job.seed}"
    return " ".join(filter(None, (job.method, options, job.data.name, seed)))


def _score(record: dict[str, Any]) -> float | None:
    test = record.get("test") or {}
    return next((test[k] for k in ("accuracy", "bits_per_byte") if k in test), None)


def check(c: Comparison, host: Host) -> None:
    """Reads every file as the task will read it. Raises: CommonweightError that names file and row."""
    columns = tuple(x for x in (c.text_column, c.label_column) if x)
    for d in c.data:
        dev = rows(d.dev, columns, split="validation") if isinstance(d.dev, str) else d.dev
        given = Rows(
            rows=rows(d.train, columns), dev=dev, text_column=c.text_column, label_column=c.label_column,
            sources=(d.train, d.dev if isinstance(d.dev, str) else d.train),
        )  # fmt: skip
        doing, *_ = examples(host, "", given, c.task, build(Recipe, c.recipe), None)
        named(d.test, doing.examples, rows(d.test, columns, split="test"))
