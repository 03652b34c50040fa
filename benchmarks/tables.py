"""The tables that people see, made from benchmarks/results: all rows that have a target, and six for the README."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .harness import RESULTS

ROOT = Path(__file__).parents[1]
BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"
MERGES = ("merge", "merge_large")
Row = dict[str, Any]


def rows(name: str, folder: Path = RESULTS) -> list[Row]:
    """What a benchmark found; [] where it was not run."""
    path = folder / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []


# -- all that have a target --------------------------------------------------------------------------------------------


def shown(row: Row) -> tuple[str, str]:
    """(figure, spread) of a row as the table prints them."""
    if row["unit"] == "points":
        figure = f"{row['difference']:+.2f} ({row['ours']} / {row['theirs']})"
        return figure, "{:+.2f} to {:+.2f}".format(*row["spread"])
    if row["unit"] == "bytes":
        return f"{row['ratio']:.3f}", "-"
    if row["unit"] == "recall":
        return f"{row['share']}", "{} to {}".format(*row["spread"])
    if row["unit"] == "percent":
        return f"{row['ours']}", f"chance {row['chance']}"
    return f"{row.get('ratio', row.get('seconds'))}", "{} to {}".format(*row["spread"])


def key_rows(names: Iterable[str]) -> list[Row]:
    """Every row that has a target, and recall; of the files, the worst one."""
    found = [r for name in names for r in rows(name)]
    for merges in filter(None, map(rows, MERGES)):
        found += [r for r in merges if r["unit"] == "time"]
        found.append(max((r for r in merges if r["unit"] == "memory"), key=lambda r: r["ratio"]))
    files = [r for r in found if r["unit"] == "bytes" and r["pools"]]
    kept = [r for r in found if r["unit"] != "bytes" and r["target"] is not None]
    kept += [r for r in rows("store_find") if r["unit"] == "recall"]
    if files:
        worst = max(files, key=lambda r: (r["file"] - 8192) / r["pools"])
        peft = max((r for r in files if r["peft_ratio"]), key=lambda r: r["peft_ratio"])
        what = f"file over pools, worst of {len(files)} methods (PEFT's worst, {peft['what'].split(', ')[1]}: "
        kept.append({**worst, "what": f"{what}{peft['peft_ratio']})"})
    return kept


def goal(row: Row) -> str:
    target = row["target"]
    if target is None:
        return "-"
    if isinstance(target, str):
        return "at most " + target
    return {
        "times faster": f"at least {target:g}",
        "of its speed": f"at least {target:g}",
        "points": f"at least {target:+g}",
    }.get(row["unit"], f"at most {target:g}")


def everything(names: Iterable[str]) -> str:
    lines = ["| what | measured | quartiles or range | target |", "| --- | ---: | ---: | ---: |"]
    for r in key_rows(names):
        lines.append(f"| {r['what']} ({r['unit']}) | {shown(r)[0]} | {shown(r)[1]} | {goal(r)} |")
    return "\n".join([*lines, "", machine()])


def machine() -> str:
    told = json.loads(next(iter(sorted(RESULTS.glob("*.json")))).read_text(encoding="utf-8"))["machine"]
    return f"Measured on {told['cores']} cores ({told['cpu']}), torch {told['torch']}, {told['date']}."


# -- on a GPU: all rows ------------------------------------------------------------------------------------------------


def on_gpu() -> str:
    lines = ["| what | measured | quartiles or range | target on two cores |", "| --- | ---: | ---: | ---: |"]
    files = sorted((RESULTS / "cuda").glob("*.json"))
    for r in (r for f in files for r in rows(f.stem, f.parent)):
        lines.append(f"| {r['what']} ({r['unit']}) | {shown(r)[0]} | {shown(r)[1]} | {goal(r)} |")
    told = sorted({_on(json.loads(f.read_text(encoding="utf-8"))["machine"]) for f in files})
    return "\n".join([*lines, "", f"Measured on {'; '.join(told)}."])


def _on(machine: Row) -> str:
    cores = f"{machine['cores']} cores ({machine['cpu']})"
    return f"one {machine['device']} with {cores}, torch {machine['torch']}, {machine['date']}"


# -- six for the README ------------------------------------------------------------------------------------------------


def one(name: str, *parts: str) -> Row:
    """The row of a benchmark whose description has all the parts."""
    found = [r for r in rows(name) if all(p in r["what"] for p in parts)]
    if len(found) != 1:
        raise SystemExit(f"benchmarks/results/{name}.json: {len(found)} rows have {' and '.join(parts)}; wanted one")
    return found[0]


def both(name: str, *parts: str, form: str) -> str:
    """The ratio on the encoder and on the decoder, the smaller one first."""
    found = sorted(one(name, *parts, base)["ratio"] for base in ("minilm", "llama"))
    return " to ".join(form.format(r) for r in found)


def headline() -> str:
    late = one("commons", "xs-common-r16-int8,")
    own, lora = late["bytes"]["ours"], late["bytes"]["theirs"]
    ties = one("merge", "ties / mergekit")
    peft = "ours / peft"
    memory = both("training_memory", peft, form="{:.2f}")
    listed = one("store", "store list, the whole process")["seconds"]
    decoding = both("mixed_batch", "decoding", "PEFT", form="{:.1f}")
    adding = both("adding_tenants", "tenant 256", form="{:.0f}")
    lines = [
        (
            "A late tenant, against LoRA of rank 16 (five tasks, three seeds)",
            f"**{own / 1000:.1f} kB**, 1/{lora / own:.0f} of LoRA's bytes; accuracy {late['difference']:+.2f} points "
            f"(seeds {late['spread'][0]:+.2f} to {late['spread'][1]:+.2f})",
            "python -m benchmarks.commons",
        ),
        (
            "Decoding one batch of 32 tenants, against PEFT's `adapter_names`",
            f"**{decoding} times** as fast",
            "python -m benchmarks.mixed_batch",
        ),
        (
            "Adding tenant number 256, against PEFT",
            f"**{adding} times** as fast",
            "python -m benchmarks.adding_tenants",
        ),
        (
            "A training step of LoRA, against PEFT",
            f"**{both('training_step', peft, form='{:.2f}')}** of its time, {memory} of its memory",
            "python -m benchmarks training_step training_memory",
        ),
        (
            "A TIES merge of three models of 337 MB, against mergekit 0.1.5",
            f"**1/{1 / ties['ratio']:.0f}** of its time, in {ties['ours_mb']:.0f} MiB of memory (mergekit: "
            f"{ties['theirs_mb']:,.0f})",
            "make bench-merge",
        ),
        ("Listing a store of 10,000 tenants", f"**{listed:.1f} s**", "python -m benchmarks.store"),
    ]
    table = ["| what | measured | command |", "| --- | --- | --- |"]
    return "\n".join([*table, *(f"| {what} | {figure} | `{command}` |" for what, figure, command in lines)])


# -- files -------------------------------------------------------------------------------------------------------------


def written(names: Iterable[str]) -> dict[Path, str]:
    """File -> its text with the table between the markers made anew."""
    pages = {ROOT / "README.md": headline(), ROOT / "docs" / "results" / "benchmarks.md": everything(names)}
    pages |= {ROOT / "docs" / "results" / "gpu.md": on_gpu()}
    return {path: replaced(path, table) for path, table in pages.items()}


def replaced(path: Path, table: str) -> str:
    head, begin, rest = path.read_text(encoding="utf-8").partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{path.name}: the markers {BEGIN} and {END} are missing")
    return f"{head}{begin}\n{table}\n{end}{tail}"
