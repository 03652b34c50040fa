"""From runs to points: means over seeds with their intervals, paired differences, and the Pareto front."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..report import mean_interval, spread
from .driver import Config, Outcome

ALL = "mean of tasks"
METRICS = {"classify": ("accuracy", True), "embed": ("accuracy", True), "lm": ("bits_per_byte", False)}


@dataclass(frozen=True)
class Value:
    """A mean over seeds. half: half the width of its 95 % interval over seeds (Student's t; None with one seed).
    rows: half the width of the interval over test rows (None where the metric is no share). seeds: the values."""

    mean: float
    half: float | None
    rows: float | None
    seeds: tuple[float, ...]


@dataclass(frozen=True)
class Point:
    """A config and what was measured of it. values: by task, and under `ALL` the mean of the tasks.
    bytes: the mean over the runs, as they ended: ranks may have moved. difference: to the reference, paired by seed.
    front: no other is as good with fewer bytes, or better with as many. failed: error messages of runs that failed."""

    config: Config
    values: dict[str, Value]
    bytes: int
    marginal_bytes: int
    head_bytes: int
    parameters: int
    peak_memory: int | None  # beyond the base model's
    seconds_per_step: float | None
    lr: dict[str, float]
    failed: tuple[str, ...]
    runs: tuple[tuple[str, dict[str, Any]], ...]
    difference: Value | None = None
    front: bool = False

    @property
    def name(self) -> str:
        return str(self.config.fit)


def metric(task: str) -> tuple[str, bool]:
    """(name of the metric that a comparison goes by, whether more of it is better)."""
    return METRICS[task]


def points(o: Outcome) -> tuple[Point, ...]:
    """Every config that was run, in the comparison's order, with whether it is on the front of the means over tasks.

    A config with a run that failed on some task has no mean and is never on the front.
    """
    name, more = metric(o.comparison.task)
    tasks = [d.name for d in o.comparison.data]
    found = [_point(i, config, tasks, name, o) for i, config in enumerate(o.configs)]
    reference = _reference(found, o.comparison.reference)
    on = front([(p.bytes, p.values[ALL].mean) if ALL in p.values else None for p in found], more)
    return tuple(replace(p, difference=paired(p, reference), front=i in on) for i, p in enumerate(found))


def _point(i: int, config: Config, tasks: Sequence[str], name: str, o: Outcome) -> Point:
    runs = tuple((task, r) for at, task, r in o.runs if at == i)
    done = [(task, r) for task, r in runs if r["state"] == "done"]
    values: dict[str, Value] = {}
    by_task = {t: [r["test"] for task, r in done if task == t] for t in tasks}
    for t in tasks:
        if len(by_task[t]) == o.comparison.seeds:
            values[t] = value([[m[name]] for m in by_task[t]], [int(m["n"]) for m in by_task[t][:1]], name)
    if len(values) == len(tasks):
        seeds = [[by_task[t][s][name] for t in tasks] for s in range(o.comparison.seeds)]
        values[ALL] = value(seeds, [int(by_task[t][0]["n"]) for t in tasks], name)
    fit = config.fit
    whole, own = (
        round(statistics.mean(r[k] for _, r in done)) if done else planned
        for k, planned in (("bytes", fit.nbytes), ("marginal_bytes", fit.own))
    )
    heads, steps = [r["head_bytes"] for _, r in done], least(done, "seconds_per_step")
    return Point(
        config, values, whole, own, round(statistics.mean(heads)) if heads else 0, fit.count,
        max(least(done, "peak_memory"), default=None), statistics.mean(steps) if steps else None,
        {t: o.tunings[i, t]["lr"] for t in tasks},
        tuple(f"{task} seed {r['job']['seed']}: {r['error']}" for task, r in runs if r["state"] == "failed"), runs,
    )  # fmt: skip


def least(done: Iterable[tuple[str, dict[str, Any]]], what: str) -> list[Any]:
    """Per task, the least over the seeds: whatever else the machine was doing can only add."""
    by_task: dict[str, list[Any]] = {}
    for task, r in done:
        if r[what] is not None:
            by_task.setdefault(task, []).append(r[what])
    return [min(of) for of in by_task.values()]


def value(seeds: Sequence[Sequence[float]], test_rows: Sequence[int], name: str) -> Value:
    """seeds: per seed, the metric on each task; test_rows: rows of each task's test file."""
    means = [statistics.mean(one) for one in seeds]
    mean, half = mean_interval(means)
    shares = [statistics.mean(task) for task in zip(*seeds)]
    rows = spread(list(zip(shares, test_rows))) if name == "accuracy" else None
    return Value(mean, half, rows, tuple(means))


def paired(p: Point, reference: Point | None) -> Value | None:
    """The difference to the reference, each seed with the same seed: what both have in common falls out."""
    if reference is None or ALL not in p.values or p is reference:
        return None
    seeds = tuple(a - b for a, b in zip(p.values[ALL].seeds, reference.values[ALL].seeds))
    mean, half = mean_interval(seeds)
    return Value(mean, half, None, seeds)


def _reference(found: Sequence[Point], method: str) -> Point | None:
    """The largest config of the method that others are paired with."""
    mine = [p for p in found if p.config.fit.method == method and ALL in p.values]
    return max(mine, key=lambda p: p.bytes, default=None)


def front(found: Sequence[tuple[float, float] | None], more: bool = True) -> set[int]:
    """Places of the (cost, quality) pairs that no other pair beats: at most its cost and at least its quality, one of
    the two better. more: whether more quality is better. None is never on it."""
    pairs = [(i, c, q if more else -q) for i, pair in enumerate(found) if pair is not None for c, q in (pair,)]
    return {
        i for i, cost, good in pairs
        if not any(c <= cost and q >= good and (c < cost or q > good) for _, c, q in pairs)
    }  # fmt: skip
