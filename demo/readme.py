"""What the demo writes for people who do not run it: the README's picture, and the page of its figures."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from pathlib import Path

from commonweight import CommonweightError
from commonweight.report import compact

from .show import Results, beside, means, percent, picture, title, write

BEGIN, END = "<!-- demo:begin -->", "<!-- demo:end -->"


def files(results: Results, root: Path) -> None:
    """README.md, docs/results/demo.md and docs/img/demo.svg below `root`."""
    fill(root / "README.md", caption(results))
    fill(root / "docs" / "results" / "demo.md", figures(results))
    write(root / "docs" / "img" / "demo.svg", picture(results).svg())


def fill(path: Path, part: str) -> None:
    """Replaces what stands between the markers. Raises: CommonweightError when they are missing."""
    text = path.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise CommonweightError(f"{path.name}: wanted one {BEGIN} and one {END}")
    before, _, rest = text.partition(BEGIN)
    write(path, f"{before}{BEGIN}\n{part}{END}{rest.partition(END)[2]}")


def caption(results: Results) -> str:
    """The README's part: the picture and what it shows."""
    late, lora, n = results["late"], beside(results), len(results["tenants"]) + 1
    told = (
        f"What `make demo` measured on {results['date'][:10]}: {n} tenants of one frozen encoder. The *late tenant* "
        f"trained {late['own'] / 1000:.1f} kB of numbers between factors that four other tasks had trained in common: "
        f"{percent(late['accuracy'])} % on {late['task']}, where LoRA with {compact(lora['bytes'])} reaches "
        f"{percent(lora['accuracy'])} % (one seed; bars are 95 % intervals)."
    )
    return f"![Accuracy against bytes on disk](docs/img/demo.svg)\n\n{wrap(told)}\n"


def figures(results: Results) -> str:
    """The page's part: picture, table and where the figures come from."""
    tasks = list(dict.fromkeys(t["task"] for t in results["tenants"]))
    score = {(t["method"], t["task"]): percent(t["accuracy"]) for t in results["tenants"]}
    head = ["method", "trained", "bytes", *tasks, "mean", "seconds"]
    lines = [_cells(head), _cells(["---"] + ["---:"] * (len(head) - 1))]
    for r in means(results):
        name = f"{title(r['method'])}, {r['settings']}"
        told = [score.get((r["method"], t), "") for t in tasks]
        mean = f"**{percent(r['accuracy'])}** ± {percent(r['error'])}"
        lines.append(_cells([name, f"{r['parameters']:,.0f}", compact(r["bytes"]), *told, mean, f"{r['seconds']:.0f}"]))
    late = results["late"]
    told = [percent(late["accuracy"]) if t == late["task"] else "" for t in tasks]
    name = f"late tenant, core 16 x 16 in {late['codec']}"
    more = [f"{late['parameters']:,}", compact(late["bytes"]), *told, "-", f"{late['seconds']:.0f}"]
    lines.append(_cells([name, *more]))
    parts = "\n\n".join(wrap(" ".join(p)) for p in paragraphs(results))
    table = "\n".join(lines)
    return f"![Accuracy against bytes on disk](../img/demo.svg)\n\n{table}\n\n{parts}\n"


def paragraphs(results: Results) -> list[list[str]]:
    mixed, host, base = results["mixed"], results["machine"], results["base"]
    late, lora, rows = results["late"], beside(results), sorted({t["rows"] for t in results["tenants"]})
    return [
        [
            f"Accuracy in %, on {' or '.join(map(str, rows))} test rows for each task. ± is the 95 % interval of the",
            "mean that so many rows allow; it does not include the choice of the seed, of which there is one.",
            f"The base is {base['name']} ({base['parameters'] / 1e6:.1f} M parameters, {base['dtype']}); each tenant",
            f"was trained on {max(results['rows']['train']):,} rows. *bytes* is the size of the tenant's file.",
        ],
        [
            f"The **late tenant** reads factors that were trained in common on {', '.join(late['others'])} in",
            f"{late['common seconds']:.0f} seconds and then frozen. It trains a core for each layer, {late['own']:,}",
            f"bytes in {late['codec']}, and its head. *bytes* is what it adds to a store in which the common already",
            "is, with head and manifest. LoRA's file is in float32, in bfloat16 half as large. The 95 % intervals",
            f"on {late['task']} are {percent(late['low'])} to {percent(late['high'])} for the late tenant and",
            f"{percent(lora['low'])} to {percent(lora['high'])} for LoRA, with one seed. All five tasks, each",
            "held out in turn, with three seeds: [What it is worth](../commons.md#what-it-is-worth).",
        ],
        [
            f"In one mixed batch of {mixed['rows']} rows of all {mixed['tenants']} tenants,",
            f"{mixed['float32']['agree']} rows agree with their tenant alone (float32, within 0.0001).",
        ],
        [
            f"The run took {results['seconds'] / 60:.1f} minutes, and {results['processor seconds'] / 60:.1f} minutes",
            f"of processor time, on {host['cores']} cores ({host['processor']}), {results['date'][:10]}.",
        ],
    ]


def wrap(text: str) -> str:
    """Lines of at most 120 characters that break no `code`."""
    whole = re.sub(r"`[^`]*`", lambda m: m[0].replace(" ", "\0"), text)
    return textwrap.fill(whole, 120, break_long_words=False, break_on_hyphens=False).replace("\0", " ")


def _cells(values: Sequence[str]) -> str:
    return "| " + " | ".join(values) + " |"
