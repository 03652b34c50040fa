"""A stream as one HTML page in one file: curves of every task, the matrix, the bytes. It loads nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from ..formats import atomic
from ..report import Column, Line, compact, facts, page, picture, table
from . import record

NAMES = {
    "average": "average at the end", "incremental": "average over the stages", "forgetting": "forgetting",
    "backward_transfer": "backward transfer", "forward_transfer": "forward transfer",
}  # fmt: skip


def report(folder: str | Path, beside: Sequence[str | Path] = ()) -> Path:
    """Writes ``report.html`` into a stream's folder, a store's ``streams/NAME``. beside: folders of other streams,
    whose averages are drawn too. Raises: CommonweightError for a folder without a stream."""
    runs: dict[str, Mapping[str, Any]] = {}
    for f in (folder, *beside):
        found = record.read(Path(f))
        name = found["method"]
        runs[name if name not in runs else f"{name} ({f})"] = found
    return atomic.write(Path(folder) / record.PAGE, render(runs).encode())


def render(runs: Mapping[str, Mapping[str, Any]]) -> str:
    """The page of the first stream, with the averages of all."""
    first = next(iter(runs.values()))
    metric, stages = first["better"][0], first["stages"]
    told = {
        "method": f"{first['method']} ({first['paper']})",
        "trained": " ".join([first["adapter"], *(f"{k}={v}" for k, v in first["adapter_options"].items())]),
        "carried over": first["carries"],
        "rows kept": first["keeps"],
        "tasks": f"{len(stages)} of {len(first['tasks'])}: {', '.join(first['tasks'])}",
        "bytes at the end": compact(stages[-1]["bytes"]["all"]) if stages else "none",
        **{NAMES[k]: "-" if v is None else f"{v:.4f}" for k, v in record.summary(first).items()},
    }
    sections = [("", facts(told))]
    names = [s["task"] for s in stages]
    lines = [Line(n, points(stages, n, i)) for i, n in enumerate(names)]
    if any(one.points for one in lines):
        sections.append(("", picture(f"{metric} of each task", lines, "after stage", metric, stages=names)))
    means = [Line(n, averages(run)) for n, run in runs.items()]
    if any(one.points for one in means):
        sections.append(("", picture(f"mean {metric} of the tasks so far", means, "after stage", metric, stages=names)))
    sections += [("Stages", matrix(stages, names)), *([("Streams", beside(runs))] if len(runs) > 1 else [])]
    return page(f"Stream: {first['method']}", lead(first, metric), sections)


def lead(run: Mapping[str, Any], metric: str) -> str:
    found = record.summary(run).get("average")
    if found is None:
        return f"{len(run['stages'])} of {len(run['tasks'])} tasks were learned."
    return f"{metric} {found:.4f}, mean over {len(run['stages'])} tasks after the last stage."


def points(stages: Sequence[Mapping[str, Any]], task: str, first: int) -> list[tuple[float, float]]:
    found = [(t, (s.get("scores") or {}).get(task)) for t, s in enumerate(stages)]
    return [(float(t), v) for t, v in found if v is not None and t >= first]


def averages(run: Mapping[str, Any]) -> list[tuple[float, float]]:
    """(stage, mean score of the tasks so far)."""
    out = []
    for t, row in enumerate(record.scores(run)):
        mine = [v for v in row[: t + 1] if v is not None]
        if len(mine) == t + 1:
            out.append((float(t), sum(mine) / len(mine)))
    return out


def matrix(stages: Sequence[Mapping[str, Any]], names: Sequence[str]) -> str:
    rows = [{"n": t, **s} for t, s in enumerate(stages)]

    def cell(task: str) -> Column:
        def value(r: Mapping[str, Any]) -> float | None:
            return (r.get("scores") or {}).get(task)

        return Column(
            escape(task), lambda r: "" if value(r) is None else f"{value(r):.4f}",
            lambda r: -1.0 if value(r) is None else value(r),
        )  # fmt: skip

    columns = [
        Column("after", lambda r: escape(r["task"]), lambda r: r["n"], number=False),
        *map(cell, names),
        Column("steps", lambda r: f"{r['steps']:,}", lambda r: r["steps"]),
        Column("rows kept", lambda r: f"{sum(r['memory'].values()):,}", lambda r: sum(r["memory"].values())),
        Column("bytes", lambda r: compact(r["bytes"]["all"]), lambda r: r["bytes"]["all"]),
        Column("of them carried", lambda r: compact(r["bytes"]["carried"]), lambda r: r["bytes"]["carried"]),
    ]
    return table(columns, rows)


def beside(runs: Mapping[str, Mapping[str, Any]]) -> str:
    rows = [{"name": n, "bytes": r["stages"][-1]["bytes"]["all"], **record.summary(r)} for n, r in runs.items()]

    def cell(key: str) -> Column:
        return Column(
            NAMES[key], lambda r: "" if r.get(key) is None else f"{r[key]:.4f}",
            lambda r: -1.0 if r.get(key) is None else r[key],
        )  # fmt: skip

    columns = [
        Column("method", lambda r: escape(r["name"]), lambda r: r["name"], number=False),
        *map(cell, NAMES),
        Column("bytes", lambda r: compact(r["bytes"]), lambda r: r["bytes"]),
    ]
    return table(columns, rows)
