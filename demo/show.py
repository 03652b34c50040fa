"""What a run found, for people: means, the table and sentences for the console, the picture."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from commonweight.formats import atomic
from commonweight.report import Dot, Scatter, compact, spread

Results = dict[str, Any]
TITLES = {"probe": "probe", "mos": "MoS", "lora": "LoRA", "late": "late tenant"}


def title(method: str) -> str:
    return TITLES.get(method, method)


def methods(results: Results) -> list[str]:
    """From the smallest tenants to the largest."""
    tenants = results["tenants"]
    return sorted({t["method"] for t in tenants}, key=lambda m: sum(t["bytes"] for t in tenants if t["method"] == m))


def means(results: Results) -> list[dict[str, Any]]:
    """A row for each method: means over its tasks. error: half of the 95 % interval of the mean accuracy."""
    out = []
    for m in methods(results):
        mine = [t for t in results["tenants"] if t["method"] == m]
        row: dict[str, Any] = {
            k: sum(t[k] for t in mine) / len(mine) for k in ("parameters", "bytes", "accuracy", "seconds")
        }
        row |= {"method": m, "tasks": len(mine), "error": spread([(t["accuracy"], t["rows"]) for t in mine])}
        row |= {"rows": sum(t["rows"] for t in mine), "settings": settings(mine[0])}
        row["adaptation"] = mine[0]["parameters"] - mine[0]["head"]
        out.append(row)
    return out


def settings(tenant: dict[str, Any]) -> str:
    return ", ".join(f"{k} {v}" for k, v in tenant["options"].items()) or "head alone"


def percent(share: float) -> str:
    return f"{100 * share:.1f}"


def share_of_lora(results: Results) -> str:
    """ "1/8" when MoS trains an eighth of what LoRA trains, heads aside; "" without both."""
    found = {r["method"]: r["adaptation"] for r in means(results)}
    return f"1/{found['lora'] / found['mos']:.3g}" if {"mos", "lora"} <= set(found) else ""


# -- console -----------------------------------------------------------------------------------------------------------


def say(text: str) -> None:
    Console().print(text, highlight=False, soft_wrap=True)


def console(results: Results) -> None:
    grid = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    grid.add_column("tenant")
    grid.add_column("method")
    for name in ("trainable", "bytes", "accuracy %", "test rows", "seconds"):
        grid.add_column(name, justify="right", no_wrap=True)
    tenants = results["tenants"]
    for i, t in enumerate(tenants):
        last = i + 1 == len(tenants) or tenants[i + 1]["task"] != t["task"]
        grid.add_row(
            t["tenant"], title(t["method"]), f"{t['parameters']:,}", f"{t['bytes']:,}", percent(t["accuracy"]),
            str(t["rows"]), f"{t['seconds']:.1f}", end_section=last,
        )  # fmt: skip
    for r in means(results):
        grid.add_row(
            "mean", title(r["method"]), f"{r['parameters']:,.0f}", f"{r['bytes']:,.0f}",
            f"[bold]{percent(r['accuracy'])}[/bold]", str(r["rows"]), f"{r['seconds']:.1f}",
        )  # fmt: skip
    wide = Console()
    wide.print()
    wide.print(grid)
    say("\n".join(["", *late_lines(results), "", *mixed_lines(results), ""]))


def beside(results: Results) -> dict[str, Any]:
    """LoRA on the late tenant's task."""
    task = results["late"]["task"]
    return next(t for t in results["tenants"] if t["task"] == task and t["method"] == "lora")


def late_lines(results: Results) -> list[str]:
    """The late tenant beside LoRA, in plain sentences."""
    late, lora = results["late"], beside(results)
    others = ", ".join(late["others"])
    return [
        f"A late tenant: the factors of LoRA-XS were trained on {others}, then frozen. {late['task']} came late:",
        f"  late tenant  {percent(late['accuracy'])} %  {late['own']:>9,} bytes of its own in {late['codec']}; with "
        f"head and manifest it adds {late['bytes']:,} bytes to the store",
        f"  LoRA         {percent(lora['accuracy'])} %  {lora['bytes']:>9,} bytes in float32, with its head",
        f"  one seed, {late['rows']} test rows (95 %: {percent(late['low'])} to {percent(late['high'])}, LoRA "
        f"{percent(lora['low'])} to {percent(lora['high'])}); all five tasks and three seeds: docs/commons.md",
    ]


def mixed_lines(results: Results) -> list[str]:
    """What the mixed batch showed, in plain sentences."""
    mixed, rows = results["mixed"], results["mixed"]["rows"]
    lines = [
        f"One batch of {rows} rows of {mixed['tenants']} tenants, each row against its tenant alone:",
        _compared(
            "float32", mixed["float32"], rows, f"{mixed['float32']['agree']} of {rows} rows agree within 0.0001, "
        ),
    ]
    if mixed["dtype"] != "float32":
        lines.append(_compared(mixed["dtype"], mixed["own"], rows, ""))
    lines.append("The same rows in one mixed batch, and tenant after tenant (median of turns, range):")
    for t in results["timing"]:
        a, b = t["mixed"], t["in turn"]
        lines.append(
            f"  {t['rows']:3d} rows  {ms(a)}  against {ms(b)}  ratio {t['ratio']:.2f}"
        )  # fmt: skip
    return lines


def gap(found: dict[str, Any]) -> str:
    return f"{found['largest difference']:.2g}" if found["largest difference"] else "0, the same bits"


def _compared(dtype: str, found: dict[str, Any], rows: int, first: str) -> str:
    return (
        f"  {dtype + ':':9} {first}{found['same prediction']} of {rows} predictions are the same; "
        f"largest difference {gap(found)} (largest logit {found['largest logit']:.1f})"
    )


def ms(t: dict[str, float]) -> str:
    return f"{t['median']:6.1f} ms ({t['least']:.0f} to {t['most']:.0f})"


# -- picture -----------------------------------------------------------------------------------------------------------


def picture(results: Results) -> Scatter:
    tenants = [*results["tenants"], results["late"]]
    dots = [
        Dot(
            title(t["method"]), t["task"], t["bytes"], t["accuracy"], t["low"], t["high"], t["tenant"],
            (
                t["tenant"], f"accuracy {percent(t['accuracy'])} % of {t['rows']} rows",
                f"95 %: {percent(t['low'])} to {percent(t['high'])}", f"{t['bytes']:,} bytes on disk",
                f"{t['parameters']:,} trainable, {t['head']:,} of them the head", f"{t['seconds']:.1f} s",
            ),
        )
        for t in tenants
    ]  # fmt: skip
    late = results["late"]
    found = {title(r["method"]): r for r in means(results)}
    sizes = {m: r["bytes"] for m, r in found.items()} | {title("late"): late["bytes"]}
    order = sorted(sizes, key=lambda m: sizes[m])
    said = "; ".join(f"{m}: mean {percent(r['accuracy'])} % at {compact(r['bytes'])}" for m, r in found.items())
    said += f"; a late tenant of {late['task']}: {percent(late['accuracy'])} % at {compact(late['bytes'])}"
    n = len({t["task"] for t in results["tenants"]})
    return Scatter(
        title="Accuracy against bytes on disk, per tenant",
        description=f"{n} tasks on one frozen encoder. {said}.",
        x_label="bytes that a tenant adds on disk, logarithmic (one dot for each task, side by side in a method)",
        y_label="accuracy on test rows; bars: 95 % interval of that many rows; large: mean over the tasks",
        groups=order,
        dots=dots,
        labels={m: compact(n) for m, n in sizes.items()},
        alone=(title("late"),),
    )


# -- files -------------------------------------------------------------------------------------------------------------


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic.write(path, text.encode())


def short(path: Path) -> str:
    """As seen from where the command runs, when it lies below."""
    return re.sub(r"^\./", "", os.path.relpath(path)) if path.resolve().is_relative_to(Path.cwd()) else str(path)
