"""Rows of docs/results/compare.md that were run anew, among the others as they are: `benchmarks.compare --renew`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from typing import Any

from commonweight.compare import ALL, Comparison, Data, Fit, Outcome, Point, Value, front
from commonweight.compare.driver import Config
from commonweight.compare.summary import paired
from commonweight.compare.table import markdown


def options(found: Mapping[str, Any], methods: Iterable[str]) -> list[str]:
    """What the comparison fixed of these methods, as words of its command."""
    fixed = found["comparison"]["options"]
    return [word for m in methods for k, v in fixed.get(m, {}).items() for word in ("-o", f"{m}.{k}={v}")]


def merged(found: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """The comparison with the rows of the methods that `new` has in the place of theirs; differences and the front
    are those of all rows as they are now."""
    mine = set(new["comparison"]["methods"])
    places = [i for i, p in enumerate(found["points"]) if p["method"] in mine]
    first = min(places, default=len(found["points"]))
    rest = [p for p in found["points"] if p["method"] not in mine]
    points = [*rest[:first], *new["points"], *rest[first:]]
    reference = found["comparison"]["reference"]
    other = max((point(p) for p in points if p["method"] == reference), key=lambda p: p.bytes)
    on = front([(p["bytes"], p["values"][ALL]["mean"]) if ALL in p["values"] else None for p in points])
    for i, p in enumerate(points):
        apart = None if p["name"] == other.name else paired(point(p), other)
        told = None if apart is None else {**asdict(apart), "seeds": [*apart.seeds]}
        points[i] = {**p, "front": i in on, "difference": told}
    small = {k: [*(x for x in found[k] if x["method"] not in mine), *new[k]] for k in ("misfits", "left_out")}
    ordered = {k: sorted(v, key=lambda x: x["method"]) for k, v in small.items()}
    return {**found, **ordered, "points": points, "earlier": [p for p in found["earlier"] if p["method"] not in mine]}


def table(found: Mapping[str, Any]) -> str:
    """Its rows as `commonweight compare` writes them."""
    told: dict[str, Any] = {k: v for k, v in found["comparison"].items() if k != "reference"}
    told |= {"data": tuple(Data(**d) for d in told["data"]), "methods": tuple(told["methods"])}
    comparison = Comparison(**{**told, "budgets": tuple(told["budgets"])})
    points = [point(p) for p in found["points"]]
    misfits = tuple((m["budget"], Fit(**{k: v for k, v in m.items() if k != "budget"})) for m in found["misfits"])
    left = tuple((x["method"], x["why"]) for x in found["left_out"])
    return markdown(Outcome(comparison, tuple(p.config for p in points), misfits, left, (), {}, 0), points)


def point(p: Mapping[str, Any]) -> Point:
    """A row as it was before it was written down, without its runs."""
    fit = Fit(p["method"], p["options"], p["bytes"], p["marginal_bytes"], p["parameters"])
    same = ("bytes", "marginal_bytes", "head_bytes", "parameters", "peak_memory", "seconds_per_step", "lr", "front")
    values = {t: value(v) for t, v in p["values"].items()}
    found = Point(
        Config(fit, tuple(p["budgets"])), values, **{k: p[k] for k in same}, failed=tuple(p["failed"]), runs=(),
        difference=p["difference"] and value(p["difference"]),
    )  # fmt: skip
    assert found.name == p["name"], f"{found.name} is not {p['name']}"
    return found


def value(v: Mapping[str, Any]) -> Value:
    return replace(Value(**v), seeds=tuple(v["seeds"]))
