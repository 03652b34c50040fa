"""The part of docs/results/compare.md about these methods, from docs/results/compare/elsewhere.json."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from commonweight.compare.summary import ALL, value
from commonweight.compare.table import number
from commonweight.formats import atomic
from commonweight.report import mean_interval

from .bases import MORE, ROOT, STEPS, TASKS, WIDTH, chance

DATA, PAGE = ROOT / "docs" / "results" / "compare" / "elsewhere.json", ROOT / "docs" / "results" / "compare.md"
BEGIN, END = "<!-- elsewhere:begin -->", "<!-- elsewhere:end -->"
HEADS = ("method", "bytes", "parameters", "accuracy %", "± seeds", "± rows", "- lora", *TASKS, "memory", "ms/step")
TITLE = "## On models that have their sites"


def kept() -> dict[str, Any]:
    return json.loads(DATA.read_text("utf-8")) if DATA.exists() else {}


def dumped(parts: Mapping[str, Any]) -> str:
    """A line for each config."""
    found = {}
    for name in sorted(parts):
        lines = ",\n".join("   " + json.dumps(p, ensure_ascii=False) for p in parts[name]["points"])
        head = json.dumps({**parts[name], "points": []}, ensure_ascii=False, indent=2)
        found[name] = head.replace('"points": []', f'"points": [\n{lines}\n  ]')
    return "{\n" + ",\n".join(f' "{name}": {text}' for name, text in found.items()) + "\n}\n"


def scored(points: Sequence[Mapping[str, Any]], name: str) -> list[dict[str, Any]]:
    """Points of a comparison by another share that their runs have: their `accuracy` is `name`."""
    found = []
    for p in points:
        measured = ("test", "dev")
        runs = [r | {k: {**r[k], "accuracy": r[k][name]} for k in measured if r.get(k)} for r in p["runs"]]
        of = {t: [r["test"] for r in runs if r["task"] == t] for t in TASKS}
        rows = {t: int(of[t][0]["n"]) for t in TASKS}
        values = {t: value([[x["accuracy"]] for x in of[t]], [rows[t]], "accuracy") for t in TASKS}
        seeds = [[x["accuracy"] for x in each] for each in zip(*of.values())]
        values[ALL] = value(seeds, list(rows.values()), "accuracy")
        found.append({**p, "runs": runs, "values": {t: asdict(v) for t, v in values.items()}})
    return found


def beside(points: Sequence[Mapping[str, Any]], reference: str) -> list[dict[str, Any]]:
    """The points, each with what it is better than the reference method's, seed by seed."""
    other, found = next(p for p in points if p["method"] == reference), []
    for p in points:
        apart = [a - b for a, b in zip(p["values"][ALL]["seeds"], other["values"][ALL]["seeds"])]
        mean, half = mean_interval(apart)
        of = {"mean": mean, "half": half, "rows": None, "seeds": apart}
        found.append({**p, "difference": None if p is other else of})
    return found


def renewed(part: Mapping[str, Any], points: Sequence[Mapping[str, Any]], reference: str) -> dict[str, Any]:
    """What is kept of a part, with these accuracies of its methods; the memory and time of a step stay what they were,
    which were measured beside the reference's."""
    new = {p["name"]: p for p in points}
    timed = ("peak_memory", "seconds_per_step")
    kept = [new[p["name"]] | {k: p[k] for k in timed} if p["name"] in new else p for p in part["points"]]
    return {**part, "points": beside(kept, reference)}


def told(results: Mapping[str, Any], command: str) -> dict[str, Any]:
    """What is kept of a comparison."""
    wanted = ("version", "metric", "left_out", "points")
    return {"command": command, **{k: results[k] for k in wanted}}


def section(parts: Mapping[str, Any]) -> str:
    """Between its two marks; nothing of none."""
    if not parts:
        return ""
    left = [f"`{name}`" for name in ABOUT if name not in parts]
    missing = f" Not run yet: {', '.join(left)}." if left else ""
    labels = ", ".join(f"{t} {100 * chance(t):.1f} %" for t in TASKS)
    out = [INTRODUCTION.format(chance=labels, missing=missing)]
    out += [f"### `{name}`\n\n{ABOUT[name]}\n\n{table(parts[name])}" for name in ABOUT if name in parts]
    return f"\n{BEGIN}\n{TITLE}\n\n" + "\n".join(out) + f"{END}\n"


def table(part: Mapping[str, Any]) -> str:
    best = sorted(part["points"], key=lambda p: -p["values"][ALL]["mean"])
    rows = ["| " + " | ".join(HEADS) + " |", "| --- |" + " ---: |" * (len(HEADS) - 1)]
    rows += ["| " + " | ".join(cells(p)) + " |" for p in best]
    called = "".join(f"$ {part[k]}\n" for k in ("command", "again") if k in part)
    return f"```console\n{called}```\n\n" + "\n".join(rows) + "\n"


def cells(p: Mapping[str, Any]) -> tuple[str, ...]:
    v, apart = p["values"][ALL], p["difference"]
    return (
        f"`{p['name']}`", f"{p['bytes']:,}", f"{p['parameters']:,}",
        *(number(v[k], True) for k in ("mean", "half", "rows")),
        "-" if apart is None else f"{100 * apart['mean']:+.2f} ± {100 * apart['half']:.2f}",
        *(f"{number(p['values'][t]['mean'], True)} ± {number(p['values'][t]['half'], True)}" for t in TASKS),
        f"{p['peak_memory'] / 1e6:,.0f} MB", f"{1e3 * p['seconds_per_step']:.0f}",
    )  # fmt: skip


def put(page: str, parts: Mapping[str, Any]) -> str:
    """The page with this part as it is now."""
    return placed(page, section(parts), BEGIN, END)


def placed(page: str, text: str, begin: str, end: str) -> str:
    """The text where one of these marks stood, and at the end of a page where none did."""
    before, _, rest = page.partition(f"\n{begin}\n")
    return before + text + rest.partition(f"{end}\n")[2]


def write() -> None:
    atomic.write(PAGE, put(PAGE.read_text("utf-8"), kept()).encode())


INTRODUCTION = """\
`python -m benchmarks.elsewhere`. Methods that have no site in the encoder stand here on a model that has them,
beside `lora`, by the same recipe, rows and seeds. The models are small, and other ones, so that accuracies are not to
be held against those of the table above. Always the commonest label: {chance}.{missing}
"""
TAUGHT = f"""\
It was taught here for {STEPS} steps on sentences of books, to give
at their last token what MiniLM gives in the mean, and has MiniLM's table of words in as many directions as it is wide.
Heads read the last token."""
ABOUT = {
    "esft": f"""\
A Llama of three layers of width {WIDTH}, made a mixture of four experts in each layer, two a token, by
[`commonweight merge`](../merging.md#dense-models-as-one-mixture). {TAUGHT} The mixture was taught so for {MORE} more.
`esft` trains the fewest experts of each layer that get a fifth of the task's tokens, `full` all weights of layers.
Four epochs of 16 rows a step here, and eight trials of each rate; the steps were timed beside other work. `esft` gains
by rates beyond those that are tried, up to eight times its own: one run of eight epochs on trec had 70.8 at 1e-3 and
74.4 at 3e-3, `full` 84.2 at 1e-3, LoRA of rank 16 78.4 at 5e-3.""",
    "pema": """\
SmolLM2-135M-Instruct as a language model. It reads a row and a question, and answers by the
word of a label: right when that is the likeliest of all 49,152 tokens. There is no head, so no row of `probe`.
`pema` reads the last state alone and adds to what the head is given of it, while `lora` moves every layer; both have 64
steps. The row is of its paper's rate, 1e-3, for steps of 2,048 states: on cr it is at chance there (two seeds have the
share of the commonest label to the row, one less). Its own rate is 1e-4 now: seed 0, at the best of three trials on
trec (2.3e-4), has 81.8 on trec, 77.2 on sst2 and 75.3 on cr, in float32; `--again pema` measures all of it.""",
    "state-offset": f"""\
A Mamba of two layers of width {WIDTH}, with a state of 8 for each channel. {TAUGHT}
`state-offset` is no better than the head alone here: its paper's rate for offsets is small, and a run has 64 steps.
With 256 steps it had 62.0 on trec and the head alone 59.2 (seed 0, at its tuned rate).""",
}
