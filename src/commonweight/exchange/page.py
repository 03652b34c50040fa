"""A run as one HTML page in one file: accuracy against bytes, every round, every client. It loads nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from itertools import accumulate
from pathlib import Path
from typing import Any

from ..formats import atomic
from ..report import Column, Line, compact, facts, page, picture, table
from .privacy import again, words
from .run import read

PAGE = "report.html"
MOST = 1000  # clients that the table shows


def report(folder: str | Path, beside: Sequence[str | Path] = ()) -> Path:
    """Writes ``report.html`` into a run's folder, also while the run goes on. beside: folders of other runs, whose
    curves are drawn too. Raises: CommonweightError for a folder without a run."""
    runs: dict[str, Mapping[str, Any]] = {}
    for f in (folder, *beside):
        name = Path(f).name or str(f)
        runs[str(f) if name in runs else name] = read(Path(f))  # runs of two folders may have one name
    return atomic.write(Path(folder) / PAGE, render(runs).encode())


def render(runs: Mapping[str, Mapping[str, Any]]) -> str:
    """The page of the first run, with the curves of all."""
    first = next(iter(runs.values()))
    metric = first["better"][0]
    curve = first["curve"]
    plan = first["rounds"]
    told = {
        "method": f"{first['method']} ({first['paper']})",
        "trained": f"{first['adapter']} {options(first['adapter_options'])}: {first['travels']:,} numbers travel"
        + (f", {first['private']:,} stay with each client" if first["private"] else ""),
        "a client and round": f"{first['payload_up']:,} bytes up, {first['payload_down']:,} down ({first['formula']}), "
        "and a frame",
        "clients": f"{len(first['clients']):,} asked so far; {plan['sample'] or 'all'} a round; split {plan['split']}",
        "rounds": f"{len(curve)} of {plan['rounds']}",
        "bytes": ", ".join(f"{compact(sum(r[k] for r in curve))} {k}" for k in ("up", "down")) + ", all clients",
        "left out": ", ".join(f"{n} {k}" for k, n in refused(curve).items()) or "nothing",
    }
    lines = [Line(label(name, run), points(run, metric)) for name, run in runs.items()]
    if about := first.get("privacy"):
        told["privacy"] = words(again(about))
    sections = [("", facts(told))]
    if any(line.points for line in lines):
        figure = picture(f"{metric} against bytes of a client", lines, "bytes up and down of one client, mean", metric)
        sections.append(("", figure))
    sections += [("Rounds", rounds(curve, metric)), ("Clients", clients(first["clients"], metric))]
    return page(f"Exchange: {first['method']}", lead(first, metric), sections)


def lead(run: Mapping[str, Any], metric: str) -> str:
    found = [r for r in run["curve"] if metric in r]
    per = sum(per_client(run))
    if not found:
        return f"{compact(per)} for a client, mean over clients and rounds so far."
    return f"{metric} {found[-1][metric]:.4f} after {found[-1]['round'] + 1} rounds and {compact(per)} for a client."


def per_client(run: Mapping[str, Any]) -> list[float]:
    """Bytes of each round, up and down, of a mean client of the run."""
    n = max(1, len(run["clients"]))
    return [(r["up"] + r["down"]) / n for r in run["curve"]]


def points(run: Mapping[str, Any], metric: str) -> list[tuple[float, float]]:
    """(bytes so far, metric) of every round that was measured."""
    spent = accumulate(per_client(run))
    return [(x, r[metric]) for x, r in zip(spent, run["curve"]) if metric in r]


def label(name: str, run: Mapping[str, Any]) -> str:
    return name if name.startswith(run["method"]) else f"{run['method']} ({name})"


def refused(curve: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    out: dict[str, int] = {}
    for r in curve:
        for reason, n in r["refused"].items():
            out[reason] = out.get(reason, 0) + n
    return out


def options(given: Mapping[str, Any]) -> str:
    return ", ".join(f"{k}={v}" for k, v in given.items())


def number(value: Any, digits: int = 4) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def rounds(curve: Sequence[Mapping[str, Any]], metric: str) -> str:
    known = {"round", "clients", "replies", "refused", "train_loss", "up", "down", metric}
    more = [k for k in dict.fromkeys(k for r in curve for k in r) if k not in known and k != "macro_f1"]

    def column(title: str, key: str, show: Any) -> Column:
        return Column(title, lambda r: show(r.get(key)), lambda r: -1 if r.get(key) is None else r[key])

    left_out = Column(
        "left out", lambda r: escape(", ".join(f"{n} {k}" for k, n in r["refused"].items())),
        lambda r: sum(r["refused"].values()), number=False,
    )  # fmt: skip
    columns = [
        column("round", "round", lambda v: str(v + 1)), column("replies", "replies", str),
        column("loss in training", "train_loss", number), column(metric, metric, number),
        *(column(k.replace("_", " "), k, number) for k in more),
        column("up", "up", compact), column("down", "down", compact), left_out,
    ]  # fmt: skip
    return table(columns, curve)


def clients(seats: Mapping[str, Mapping[str, Any]], metric: str) -> str:
    rows: list[dict[str, Any]] = [{"client": int(c), **s} for c, s in seats.items()]
    columns = [
        Column("client", lambda r: str(r["client"]), lambda r: r["client"]),
        Column("rows", lambda r: f"{r['rows']:,}", lambda r: r["rows"]),
        Column("rounds", lambda r: str(r["rounds"]), lambda r: r["rounds"]),
        Column("up", lambda r: compact(r["up"]), lambda r: r["up"]),
        Column("down", lambda r: compact(r["down"]), lambda r: r["down"]),
        Column("loss", lambda r: number(r["loss"]), lambda r: -1 if r["loss"] is None else r["loss"]),
    ]
    if any(metric in r["metrics"] for r in rows):
        rows = [{**r, "own": r["metrics"].get(metric)} for r in rows]
        columns.append(
            Column(f"{metric}, held out", lambda r: number(r["own"]), lambda r: -1 if r["own"] is None else r["own"])
        )
    note = f'<p class="note">The first {MOST:,} of {len(rows):,}.</p>' if len(rows) > MOST else ""
    return table(columns, rows[:MOST]) + note
