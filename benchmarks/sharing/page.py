"""docs/results/share.md and its picture from docs/results/share.json."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from commonweight.formats import atomic
from commonweight.report.statistics import mean_interval

from .front import picture

ROOT = Path(__file__).parents[2]
DATA, PAGE = ROOT / "docs" / "results" / "share.json", ROOT / "docs" / "results" / "share.md"
NAMES = {"minilm": "MiniLM", "smollm2": "SmolLM2-135M-Instruct"}
UNITS = {"accuracy": "accuracy, %", "books": "bits per byte"}
INTRODUCTION = """# Sharing, at equal bytes

Each method makes the blocks of a pretrained model as near to one half, or one third, of their bytes as it can. The
result is healed: it reads the same tokens as every other, taught by the original. The learning rate is the better of
two, tried on a part of the tokens and chosen on held-out rows. The budget is small: {tokens}. Papers heal with
thousands of times as many tokens, so this table says what a method is worth when little can be spent.

Beside them stand what people would do otherwise: `drop` leaves layers out; *from nothing* is a model of fewer layers
that begins with random numbers; *bits* keeps all weights of the blocks, rounded, 64 in a group, without any healing.
*loss* is that of the healing, on held-out rows; *time of a pass* and *cache* are shares of the original's.

    {command}

{notes}
"""
NOTES = {
    "minilm": (
        "Accuracy: the mean of trec, sst2 and cr, by ridge regression on the mean of the last hidden states. The\n"
        "encoder heals on the training sentences, without labels. Its loss is that of the hidden states."
    ),
    "smollm2": (
        "Bits per byte: of two books that nobody healed on, less is better; *gsm8k*: of its test questions and\n"
        "answers. Accuracy is that of the next token in the books. The weights of SmolLM2 were in 4 bits at their\n"
        "source, which favours few bits here."
    ),
}
COMMAND = "COMMONWEIGHT_BENCH_DEVICE=cuda python -m benchmarks.sharing --data ../shared/data --smollm2 FOLDER"


class Line(NamedTuple):
    """One method at one size, over the seeds that were run."""

    name: str
    kind: str
    share: float
    unhealed: float
    found: list[float]
    runs: list[dict[str, Any]]

    @property
    def mean(self) -> float:
        return statistics.mean(self.found)


def write() -> None:
    found = json.loads(DATA.read_text("utf-8"))
    atomic.write(PAGE, page(found).encode())
    for base, about in found["originals"].items():
        svg = picture(NAMES[base], UNITS[about["main"][0]], original(about), points(found, base), about["main"][1])
        atomic.write(PAGE.parent / f"share-{base}.svg", svg.encode())


def page(found: dict[str, Any]) -> str:
    bases = [b for b in NAMES if b in found["originals"]]
    tokens = " and ".join(f"{found['originals'][b]['tokens']:,} for {NAMES[b]}" for b in bases)
    on = found["machine"].get("device", found["machine"].get("cpu"))
    notes = f"Measured on {on}, torch {found['machine']['torch']}, {found['machine']['date']}. {NOTE_OF_SEEDS}"
    text = INTRODUCTION.format(tokens=tokens, command=COMMAND, notes=notes) + "\n"
    return text + "".join(section(found, base) for base in bases)


NOTE_OF_SEEDS = "Where several seeds were run, figures are means, with the 95 % interval."


def section(found: dict[str, Any], base: str) -> str:
    about = found["originals"][base]
    main, more = about["main"]
    others = [k for k in [*about["figures"], "loss"] if k != main]
    out = [f"## {NAMES[base]}\n\n{NOTES[base]}\n\n![The figures against the bytes of the blocks](share-{base}.svg)\n"]
    whole = ", ".join(f"{k} {v:.4g}" for k, v in about["figures"].items())
    out.append(f"The original: {whole}.\n")
    for target in sorted({r["target"] for r in found["runs"].values() if r["base"] == base}, reverse=True):
        head = ["method", "bytes of the blocks", f"{main} before healing", main, *others, "time of a pass", "cache"]
        rows = [
            f"### 1/{round(1 / target)} of the bytes\n\n| {' | '.join(head)} |",
            "| --- |" + " ---: |" * (len(head) - 1),
        ]
        lines = sorted(grouped(found, base, target), key=lambda x: x.mean, reverse=more)
        rows += [shown(x, main, others) for x in lines]
        out.append("\n".join(rows) + "\n" + verdict(lines, more))
    return "\n".join(out) + "\n"


def grouped(found: dict[str, Any], base: str, target: float) -> list[Line]:
    runs = [r for r in found["runs"].values() if r["base"] == base and r["target"] == target]
    by: dict[str, list[dict[str, Any]]] = {}
    for r in runs:
        by.setdefault(titled(r), []).append(r)
    main = found["originals"][base]["main"][0]
    return [
        Line(
            n,
            rs[0]["kind"],
            rs[0]["share"],
            statistics.mean(r["unhealed"][main] for r in rs),
            [last(r)[main] for r in rs],
            rs,
        )
        for n, rs in by.items()
    ]


def titled(run: dict[str, Any]) -> str:
    options = " ".join(f"{k}={v}" for k, v in run["options"].items())
    return f"{run['name']} {options}".strip()


def last(run: dict[str, Any]) -> dict[str, float]:
    return run.get("healed", run["unhealed"])


def shown(line: Line, main: str, others: Iterable[str]) -> str:
    name = f"`{line.name}`" if line.kind == "share" else f"*{line.name}*"
    before = f"{line.unhealed:.4g}" if line.kind != "bits" else "-"
    more = [f"{statistics.mean(last(r)[k] for r in line.runs):.4g}" if k in last(line.runs[0]) else "-" for k in others]
    pace = [r["pace"] for r in line.runs if "pace" in r]
    cost = [
        f"{statistics.mean(pace):.2f}" if pace else "-",
        f"{line.runs[0]['cache']:.2f}" if "cache" in line.runs[0] else "-",
    ]
    cells = [name, f"{line.share:.1%}", before, spread(line.found), *more, *cost]
    return f"| {' | '.join(cells)} |"


def spread(found: list[float]) -> str:
    if len(found) < 2:
        return f"{found[0]:.4g}"
    mean, half = mean_interval(found)
    return f"{mean:.4g} ± {half:.2g}"


def verdict(lines: list[Line], more: bool) -> str:
    """Whether the best that shares is better than leaving layers out, and than fewer bits."""
    best = next((x for x in lines if x.kind == "share" and not x.name.startswith("drop")), None)
    if best is None:
        return ""
    rivals = {"leaving layers out": next((x for x in lines if x.name.startswith("drop")), None)}
    rivals["fewer bits"] = next((x for x in lines if x.kind == "bits"), None)
    told = []
    for what, rival in rivals.items():
        if rival is not None:
            gap = (best.mean - rival.mean) * (1 if more else -1)
            told.append(f"{'better' if gap > 0 else 'worse'} than {what} by {abs(gap):.3g}")
    return f"\nThe best that shares, `{best.name}`, is {' and '.join(told)}.\n" if told else ""


def points(found: dict[str, Any], base: str) -> list[tuple[str, str, float, float]]:
    targets = {r["target"] for r in found["runs"].values() if r["base"] == base}
    return [(x.name, x.kind, x.share, x.mean) for t in targets for x in grouped(found, base, t)]


def original(about: dict[str, Any]) -> float:
    return about["figures"][about["main"][0]]
