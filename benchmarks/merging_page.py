"""The page of `merging_quality`, docs/results/merging.md, from what was measured."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from commonweight import merge
from commonweight.formats import atomic
from commonweight.report.statistics import mean_interval

from . import merging_learn
from .harness import machine
from .merging_setting import ANCHOR, CACHE, FACTORS, KINDS, MEASURED, NOT_HERE, PER_TASK, ROOT, SEEDS, TASKS, names

PAGE = ROOT / "docs" / "results" / "merging.md"


Run = dict[str, Any]
CLAIMS = (  # (above, below, where): the order of the papers' own tables of several tasks
    ("ties", "task_arithmetic", "TIES, arXiv 2306.01708"),
    ("task_arithmetic", "linear", "TIES, arXiv 2306.01708"),
    ("ties", "fisher", "TIES, arXiv 2306.01708"),
    ("pcb", "task_arithmetic", "PCB, arXiv 2410.02396"),
    ("pcb", "ties", "PCB, arXiv 2410.02396"),
    ("twin_merging", "task_arithmetic", "Twin-Merging, arXiv 2406.15479"),
    ("twin_merging", "ties", "Twin-Merging, arXiv 2406.15479"),
    ("tall_masks", "ties", "TALL masks, arXiv 2405.07813"),
    ("consensus", "task_arithmetic", "TALL masks, arXiv 2405.07813"),
    ("consensus", "ties", "TALL masks, arXiv 2405.07813"),
    ("lines", "task_arithmetic", "LiNeS, arXiv 2410.17146"),
    ("doge", "task_arithmetic", "DOGE, arXiv 2501.01230"),
    ("doge", "ties", "DOGE, arXiv 2501.01230"),
    ("doge", "pcb", "DOGE, arXiv 2501.01230"),
)


def folders(kind: str) -> list[Path]:
    """Of the seeds that were measured."""
    return [f for s in SEEDS if (f := CACHE / f"{kind}-{s}") and (f / "own.json").exists()]


def runs(kind: str, name: str) -> list[Run | None]:
    return [json.loads(p.read_text()) if (p := f / f"{name}.json").exists() else None for f in folders(kind)]


def shares(kind: str, name: str) -> list[float]:
    """Each seed's mean over the tasks of what the merged model has of the single model's accuracy, in per cent."""
    own = [json.loads((f / "own.json").read_text()) for f in folders(kind)]
    return [
        statistics.mean(100 * a / o[t] for a, t in zip(r["tuned"], TASKS))
        for r, o in zip(runs(kind, name), own, strict=True)
        if r
    ]


def lacking(kind: str, name: str) -> str | None:
    """Why a method has no row."""
    found = runs(kind, name)
    refused = next((r["error"] for r in found if r and "error" in r), None)
    return refused or ("not run with every seed" if None in found else None)


def row(kind: str, name: str) -> str:
    found = [r for r in runs(kind, name) if r]
    plain, tuned = (statistics.mean(statistics.mean(r[k]) for r in found) for k in ("plain", "tuned"))
    method, factors = merge.get(name), ", ".join(f"{r['factor']:g}" for r in found)
    data = "statistics" if "statistics" in method.options() else method.data
    whose = "one a task" if name in PER_TASK else "one"
    whose += "" if data == "none" else f", {data}{' rows' if method.learn else ''}"
    return f"| `{name}` | {whose} | {plain:.1f} | {tuned:.1f} | {_spread(shares(kind, name))} | {factors} |"


def _spread(values: Sequence[float], sign: str = "") -> str:
    mean, half = mean_interval(values)
    return f"{mean:{sign}.1f}" + ("" if half is None else f" ± {half:.1f}")


def table(kind: str) -> list[str]:
    """Markdown: one line a method, best first."""
    own = [json.loads((f / "own.json").read_text()) for f in folders(kind)]
    alone = statistics.mean(statistics.mean(o.values()) for o in own)
    missing = dict[str, list[str]]()
    for name in names():
        if why := lacking(kind, name):
            missing.setdefault(why, []).append(f"`{name}`")
    there = [n for n in names() if not lacking(kind, n)]
    there.sort(key=lambda n: -statistics.mean(shares(kind, n)))
    return [
        f"Each model alone: {alone:.1f} points in the mean of the five tasks ({len(own)} seeds).",
        "",
        "| method | models, data | accuracy | with a factor from dev | % of single models, 95 % interval | factor |",
        "| --- | --- | ---: | ---: | ---: | --- |",
        *(row(kind, n) for n in there),
        *(x for why, left in missing.items() for x in ("", f"Left out: {', '.join(left)}: {why}.")),
    ]


def claims() -> list[str]:
    """Markdown: the papers' order against ours, as differences in % of the single models over the same seeds."""
    out = [
        "| above, says the paper | below | paper | " + " | ".join(SHORT.values()) + " |",
        "| --- | --- | --- |" + " ---: |" * len(SHORT),
    ]
    for above, below, where in CLAIMS:
        cells = []
        for kind in SHORT:
            if not folders(kind) or lacking(kind, above) or lacking(kind, below):
                cells.append("not run")
                continue
            gaps = [a - b for a, b in zip(shares(kind, above), shares(kind, below), strict=True)]
            mean, half = mean_interval(gaps)
            clear = half is not None and abs(mean) > half
            said = "open" if not clear else "as the paper" if mean > 0 else "the other way"
            cells.append(f"{_spread(gaps, '+')}, {said}")
        out.append(f"| `{above}` | `{below}` | {where} | " + " | ".join(cells) + " |")
    return out


SHORT = {"full": "full fine-tuning", "lora": "LoRA adapters"}
TITLES = {"full": "Full fine-tuning (all weights of the blocks)", "lora": "LoRA adapters of rank 16, merged as weights"}


def _told(budget: Mapping[str, Any]) -> str:
    return ", ".join(f"{k} {v:g}" for k, v in budget.items())


def page() -> str:
    now = machine()
    parts = [
        "# Merging five tasks",
        "",
        "Five classification tasks (trec, sst2, sst5, mr, cr; 1,000 training rows each, shipped in `demo/data`) of one",
        "MiniLM of 6 layers. Every task keeps its own head.",
        "",
        "- *accuracy*: the merged model with the method's defaults.",
        "- *with a factor from dev*: the whole change is multiplied by one factor of "
        + ", ".join(f"{f:g}" for f in FACTORS)
        + f", chosen on {MEASURED['dev']} dev",
        "  rows a task. Every method has the same list.",
        "",
        f"Accuracies are those of {MEASURED['test']} test rows a task. sst2, sst5 and mr share some rows: a dev or",
        "test row that is a training row of any task is left out.",
        "",
        f"Methods that learn do so on {merging_learn.BATCH * merging_learn.BATCHES} dev rows a task of at most "
        f"{merging_learn.LENGTH} tokens. Their budget here is far smaller than",
        "their authors' (" + "; ".join(f"`{n}`: {_told(b)}" for n, b in merging_learn.BUDGET.items()) + "),",
        f"so they can do better than this. `bayesian` corrects `{ANCHOR}`. `twin_merging` and `skillpack` are measured",
        "with an ideal router, one model a task.",
        "",
        "These methods do not merge five tasks, and are not in the table: "
        + "; ".join(f"`{n}` {why}" for n, why in NOT_HERE.items())
        + ".",
        "",
        "    python -m benchmarks.merging_quality",
        "",
    ]
    for kind in KINDS:
        if (CACHE / f"{kind}-{SEEDS[0]}" / "own.json").exists():
            parts += [f"## {TITLES[kind]}", "", *table(kind), ""]
    parts += [
        "## The papers' order",
        "",
        "The papers compare methods on other models and tasks. Each row is a pair of methods of which a paper puts",
        "the first above the second. The figure is our difference between the two, in % of the single models, both",
        "with a factor from dev, and its 95 % interval over the seeds. *Open*: the interval includes zero. `lines` is",
        "LiNeS on task arithmetic. `linear` (averaging) is task arithmetic with a fifth of its factor: the difference",
        "of that pair comes from how coarse the list of factors is.",
        "",
        *claims(),
        "",
    ]
    parts += [f"torch {now['torch']}, {now['cpu']}, {now['date']}."]
    return "\n".join(parts) + "\n"


def write() -> None:
    PAGE.parent.mkdir(exist_ok=True)
    atomic.write(PAGE, page().encode())
