"""The README's part: a picture and a table of means."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from pathlib import Path

from commonweight import CommonweightError
from commonweight.report import compact

from .show import Results, means, percent, title, write

BEGIN, END = "<!-- demo:begin -->", "<!-- demo:end -->"


def fill(results: Results, path: Path) -> None:
    """Replaces what stands between the markers. Raises: CommonweightError when they are missing."""
    text = path.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise CommonweightError(f"{path.name}: wanted one {BEGIN} and one {END}")
    before, _, rest = text.partition(BEGIN)
    write(path, f"{before}{BEGIN}\n{part(results)}{END}{rest.partition(END)[2]}")


def part(results: Results) -> str:
    tasks = list(dict.fromkeys(t["task"] for t in results["tenants"]))
    score = {(t["method"], t["task"]): percent(t["accuracy"]) for t in results["tenants"]}
    head = ["method", "trained", "file", *tasks, "mean", "seconds"]
    lines = [_cells(head), _cells(["---"] + ["---:"] * (len(head) - 1))]
    for r in means(results):
        name = f"{title(r['method'])}, {r['settings']}"
        told = [score.get((r["method"], t), "") for t in tasks]
        mean = f"**{percent(r['accuracy'])}** ± {percent(r['error'])}"
        lines.append(_cells([name, f"{r['parameters']:,.0f}", compact(r["bytes"]), *told, mean, f"{r['seconds']:.0f}"]))
    told = " ".join(sentences(results, sorted({t["rows"] for t in results["tenants"]})))
    table = "\n".join(lines)
    return f"![Accuracy against bytes on disk](docs/img/demo.svg)\n\n{table}\n\n{wrap(told)}\n"


def sentences(results: Results, rows: list[int]) -> list[str]:
    mixed, host, base = results["mixed"], results["machine"], results["base"]
    return [
        f"Accuracy in %, on {' or '.join(map(str, rows))} test rows a task; ± is the 95 % interval of the mean that so",
        "many rows allow (one seed).",
        f"{len(results['tenants'])} tenants of one frozen encoder ({base['parameters'] / 1e6:.1f} M parameters,",
        f"{base['dtype']}, no network, no GPU), each trained on {max(results['rows']['train']):,} rows;",
        f"{results['seconds'] / 60:.1f} minutes on {host['cores']} cores ({host['processor']}),",
        f"{results['date'][:10]}.",
        f"In one mixed batch of {mixed['rows']} rows, {mixed['float32']['agree']} agree with their tenant alone",
        "(float32, within 0.0001).",
        "`make demo` makes the numbers anew, and a page with all of them, `demo/report.html`;",
        "`python -m demo --picture docs/img/demo.svg --readme` wrote this part.",
    ]


def wrap(text: str) -> str:
    """Lines of at most 120 characters that break no `code`."""
    whole = re.sub(r"`[^`]*`", lambda m: m[0].replace(" ", "\0"), text)
    return textwrap.fill(whole, 120, break_long_words=False, break_on_hyphens=False).replace("\0", " ")


def _cells(values: Sequence[str]) -> str:
    return "| " + " | ".join(values) + " |"
