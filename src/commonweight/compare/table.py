"""The comparison as a table: on a terminal, as Markdown, as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from .. import __version__
from .driver import Outcome
from .job import TUNING_SEED
from .summary import ALL, Point, Value, metric
from .tune import SPAN

HEADS = ("method", "bytes", "marginal", "parameters", "{metric}", "± seeds", "± rows", "- {reference}", "memory",
         "ms/step", "front")  # fmt: skip
LEAST = (8, 3, 9, 6, 2, 7)  # columns that a narrow terminal does without, in this order


def shown(p: Point, task: str) -> tuple[str, ...]:
    """A point's cells, in the order of `HEADS`. Shares are shown as percent."""
    share = metric(task)[0] == "accuracy"
    v = p.values.get(ALL)
    difference = p.difference
    return (
        p.name, f"{p.bytes:,}", f"{p.marginal_bytes:,}", f"{p.parameters:,}",
        *((number(v.mean, share), number(v.half, share), number(v.rows, share)) if v else ("failed", "-", "-")),
        "-" if difference is None else signed(difference, share),
        "-" if p.peak_memory is None else f"{p.peak_memory / 1e6:,.0f} MB",
        "-" if p.seconds_per_step is None else f"{1e3 * p.seconds_per_step:.0f}", "yes" if p.front else "",
    )  # fmt: skip


def number(value: float | None, share: bool) -> str:
    if value is None:
        return "-"
    return f"{100 * value:.2f}" if share else f"{value:.4f}"


def signed(v: Value, share: bool) -> str:
    scale, digits = (100, 2) if share else (1, 4)
    half = "" if v.half is None else f" ± {scale * v.half:.{digits}f}"
    return f"{scale * v.mean:+.{digits}f}{half}"


def heads(o: Outcome) -> list[str]:
    """The columns' names."""
    name, _ = metric(o.comparison.task)
    name = {"accuracy": "accuracy %", "bits_per_byte": "bits/byte"}[name]
    return [h.format(metric=name, reference=o.comparison.reference) for h in HEADS]


def ordered(points: Sequence[Point], task: str) -> list[Point]:
    """The best first; those without a mean last."""
    sign = -1 if metric(task)[1] else 1
    return sorted(points, key=lambda p: (ALL not in p.values, sign * p.values[ALL].mean if ALL in p.values else 0))


def terminal(o: Outcome, points: Sequence[Point], width: int) -> Any:
    """A table of at most `width` columns: what does not fit is left out, what matters least first."""
    from rich import box
    from rich.table import Table

    names, rows = heads(o), [shown(p, o.comparison.task) for p in ordered(points, o.comparison.task)]
    wide = [max(map(len, column)) + 3 for column in zip(names, *rows)]
    kept = set(range(len(names)))
    for least in LEAST:
        if sum(wide[i] for i in kept) + 2 > width:
            kept.discard(least)
    table = Table(title=headline(o), title_justify="left", caption=caption(o), caption_justify="left", box=box.SIMPLE)
    for i in sorted(kept):
        table.add_column(names[i], justify="left" if i == 0 else "right", overflow="fold", no_wrap=i > 0)
    for cells in rows:
        table.add_row(*(cells[i] for i in sorted(kept)), style="bold" if cells[-1] else "")
    return table


def markdown(o: Outcome, points: Sequence[Point]) -> str:
    """The whole table, then one column per task."""
    c = o.comparison
    names = heads(o)
    out = [f"{headline(o)}.", "", caption(o), "", "| " + " | ".join(names) + " |"]
    out.append("| --- |" + " ---: |" * (len(names) - 1))
    best = ordered(points, c.task)
    out += ["| `" + "` | ".join((cells[0], " | ".join(cells[1:]))) + " |" for cells in (shown(p, c.task) for p in best)]
    tasks = [d.name for d in c.data]
    out += ["", "By task, mean and 95 % interval over seeds:", "", "| method | " + " | ".join(tasks) + " |"]
    out.append("| --- |" + " ---: |" * len(tasks))
    share = metric(c.task)[0] == "accuracy"
    for p in best:
        cells = [_cell(p.values.get(t), share) for t in tasks]
        out.append(f"| `{p.name}` | " + " | ".join(cells) + " |")
    small = [f"- {text}: `{one.method}` starts at {one.nbytes:,} bytes (`{one}`)" for text, one in o.misfits]
    if small:
        out += ["", "Budgets that a method cannot meet on these sites:", "", *small]
    if o.left_out:
        out += ["", "Left out, with no config on these sites:", "", *(f"- `{name}`: {why}" for name, why in o.left_out)]
    over = [
        f"- {text}: `{p.name}` ended with {p.bytes:,}"
        for p in best for text, size in c.limits if size is not None and text in p.config.budgets and p.bytes > size
    ]  # fmt: skip
    if over:
        out += ["", "Planned within a budget, and ended with more bytes, which is what the table has:", "", *over]
    failed = [f"- `{p.name}`: {message}" for p in points for message in p.failed]
    if failed:
        out += ["", "Runs that gave no number:", "", *failed]
    return "\n".join(out) + "\n"


def _cell(v: Value | None, share: bool) -> str:
    if v is None:
        return "failed"
    return number(v.mean, share) + ("" if v.half is None else f" ± {number(v.half, share)}")


def headline(o: Outcome) -> str:
    c = o.comparison
    many = lambda n, what: f"{n} {what}" + ("" if n == 1 else "s")  # noqa: E731
    return f"{many(len(c.methods), 'method')}, {many(len(o.configs), 'config')}, {many(len(c.data), 'task')}, " + many(
        c.seeds, "seed"
    )


def caption(o: Outcome) -> str:
    """What a reader has to know about how it was measured."""
    c = o.comparison
    where = "and task" if c.tune_on is None else f"on {c.tune_on}, used on every task"
    rates = (
        f"learning rates: the best of {c.trials} trials per config {where} (the method's own, then between 1/{SPAN:g} "
        f"and {SPAN:g} times it; successive halving on the dev rows, seed {TUNING_SEED}), the same for every method"
        if c.trials
        else "learning rates: each method's default, not tuned"
    )
    by = f" with the codec {c.codec}, in which they were also measured" if c.codec else ""
    seeds = "± seeds: 95 % interval over seeds (Student's t)" if c.seeds > 1 else "one seed: no interval over seeds"
    return (
        f"{rates}. bytes: saved pools{by}, without the head, as they were after training: where ranks moved to wider "
        "layers, or what rows gave had to be kept, more than the plan that fitted. marginal: bytes of one more tenant "
        "when the shared pools are there already; 0: all pools are shared, and one more tenant costs a seed (what it "
        "reads) and a head. "
        f"{seeds}; ± rows: 95 % interval over test rows. - {c.reference}: difference to its largest config, seed by "
        "seed. front: no other config is as good with fewer bytes."
    )


def to_json(o: Outcome, points: Sequence[Point]) -> dict[str, Any]:
    """Everything that was measured, JSON-ready."""
    c = o.comparison
    name, more = metric(c.task)
    return {
        "version": __version__, "comparison": {**asdict(c), "reference": c.reference}, "metric": name, "more": more,
        "headline": headline(o), "caption": caption(o),
        "left_out": [{"method": name, "why": why} for name, why in o.left_out],
        "misfits": [{"budget": text, **one._asdict()} for text, one in o.misfits],
        "points": [_plain(p, c.task, o, i) for i, p in enumerate(points)],
    }  # fmt: skip


def _plain(p: Point, task: str, o: Outcome, i: int) -> dict[str, Any]:
    kept = ("bytes", "marginal_bytes", "head_bytes", "parameters", "peak_memory", "seconds_per_step", "lr", "front")
    return {
        "name": p.name, "method": p.config.fit.method, "options": p.config.fit.options, "budgets": p.config.budgets,
        **{k: getattr(p, k) for k in kept}, "values": {t: asdict(v) for t, v in p.values.items()},
        "difference": None if p.difference is None else asdict(p.difference), "failed": p.failed,
        "cells": shown(p, task),
        "trials": {t: o.tunings[i, t]["trials"] for t in p.lr},
        "runs": [
            {"task": t, "seed": r["job"]["seed"], "state": r["state"], "test": r.get("test"), "dev": r.get("dev"),
             "curve": r["curve"], "command": r.get("command"), "machine": r.get("machine"), "key": r["key"],
             "seconds": r.get("seconds"), "steps": r.get("steps")}
            for t, r in p.runs
        ],
    }  # fmt: skip
