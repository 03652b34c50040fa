"""The five sentence tasks one after another: what each lifelong method forgets, and what it keeps.

160 training rows a task, accuracy on 100 of its test rows after every stage.

    python -m benchmarks.streams                 # those that docs/results/streams.json lacks; then the table
    python -m benchmarks.streams ewc replay      # these anew
    python -m benchmarks.streams --orders        # what is lacking of two further orders, each with a seed of its own
    python -m benchmarks.streams --table         # the tables alone
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from commonweight import lifelong
from commonweight.adapt import Data, open_host, read

from .shapes import minilm_folder

ROOT = Path(__file__).parents[1]
DATA, RESULTS = ROOT / "demo" / "data", ROOT / "docs" / "results"
ORDER = ("trec", "sst2", "cr", "sst5", "mr")
FURTHER = {1: ("mr", "sst5", "cr", "trec", "sst2"), 2: ("cr", "mr", "trec", "sst2", "sst5")}  # seed -> order
TRAIN, TEST = 160, 100
RECIPE: dict[str, Any] = {"epochs": 3, "batch_size": 32, "lr": 2e-3, "max_length": 32, "seed": 0}
SIDES: dict[str, dict[str, Any]] = {
    "sequential": {"rank": 8}, "separate": {"rank": 8}, "replay": {"rank": 8, "rows": 16}, "coso": {}, "mos": {},
    "lwf": {"rank": 8}, "joint": {"rank": 8}, "ewc": {"rank": 8, "rows": 32}, "o-lora": {"rank": 8},
    "spu": {"rows": 64}, "k-fpf": {"rank": 8, "rows": 16}, "conpet": {"rank": 8, "rows": 16, "batches": 15},
    "par": {"rank": 8}, "inflora": {"rank": 8, "rows": 64}, "l2p": {}, "dualprompt": {}, "coda-prompt": {},
    "mocl-p": {},
}  # fmt: skip
RATES = dict.fromkeys(("l2p", "dualprompt", "coda-prompt", "mocl-p"), 1e-2)  # prefixes: their adapters' own
ABOUT = (
    f"{', '.join(ORDER)}, one after another on MiniLM (all-MiniLM-L6-v2): {TRAIN} training rows each, "
    f"{RECIPE['epochs']} epochs at the rate {RECIPE['lr']} (methods of prompts 0.01), LoRA r8 where the adapter can be "
    "chosen. Accuracy on "
    f"{TEST} test rows of demo/data; the task is told, but for what stands in brackets, where the method found it. One "
    "order, one seed: differences of less than six points say nothing. Bytes are those of the store at the end, "
    "seconds those of training on a busy machine. `python -m benchmarks.streams` makes it; "
    "[Streams of tasks](../streams.md) says what the figures are."
)


def run(method: str, host: Any, order: Sequence[str] = ORDER, seed: int = 0) -> dict[str, Any]:
    """A stream's figures, in a store that is thrown away."""
    tasks = {n: Data(rows=read(DATA / f"{n}.train.tsv")[:TRAIN]) for n in order}
    evals = {n: read(DATA / f"{n}.test.tsv")[:TEST] for n in order}
    with tempfile.TemporaryDirectory() as folder:
        made = lifelong.learn(
            host,
            tasks,
            Path(folder) / "shop",
            method=method,
            options=SIDES[method],
            evals=evals,
            say=print,
            **{**RECIPE, "seed": seed, "lr": RATES.get(method, RECIPE["lr"])},
        )
    stages = made.record["stages"]
    return {
        "scores": made.scores, "untold": stages[-1].get("untold"), **made.summary, "options": SIDES[method],
        "seconds": round(sum(s["seconds"] for s in stages), 1), "bytes": [s["bytes"]["all"] for s in stages],
        "carried": [s["bytes"]["carried"] for s in stages],
    }  # fmt: skip


def table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """A line for each method, the best average first."""
    order = sorted(found, key=lambda m: -(found[m]["average"] or 0))
    lines = [
        "# Streams of tasks, measured", "", ABOUT, "",
        f"| method | {' | '.join(ORDER)} | average | forgetting | backward | forward | bytes | carried | s |",
        f"| --- |{' ---: |' * (len(ORDER) + 7)}",
    ]  # fmt: skip
    for m in order:
        r = found[m]
        cells = [*r["scores"][-1], r["average"], r["forgetting"], r["backward_transfer"], r["forward_transfer"]]
        told = ["-" if v is None else f"{100 * v:.1f}" for v in cells]
        if alone := r["untold"]:
            told[len(ORDER)] += f" ({100 * sum(alone.values()) / len(alone):.1f})"
        more = [f"{r['bytes'][-1]:,}", f"{r['carried'][-1]:,}", f"{r['seconds']:.0f}"]
        lines.append(f"| `{m}` | {' | '.join([*told, *more])} |")
    return "\n".join([*lines, ""])


def orders(first: Mapping[str, Any], further: Mapping[str, Mapping[str, Any]]) -> str:
    """A line for each method that was run in a further order: the mean over its orders, and its deviation."""
    each = {m: [first[m], *further[m].values()] for m in further if m in first and further[m]}
    others = "; ".join(f"{', '.join(o)} with seed {s}" for s, o in FURTHER.items())
    lines = [
        "## Further orders, each with a seed of its own", "",
        f"Beside the order above with seed 0: {others}. Means over as many runs as a method has had and, behind ±, "
        "deviations of one run. Three runs decide little: less than four points say nothing. "
        "`python -m benchmarks.streams --orders` makes it.", "",
        "| method | orders | average | forgetting | worst average |", "| --- | ---: | ---: | ---: | ---: |",
    ]  # fmt: skip
    for m in sorted(each, key=lambda m: -statistics.mean(r["average"] for r in each[m])):
        average = [100 * r["average"] for r in each[m]]
        lost = [100 * r["forgetting"] for r in each[m] if r["forgetting"] is not None]
        told = [f"{statistics.mean(x):.1f} ± {statistics.stdev(x):.1f}" if x else "-" for x in (average, lost)]
        lines.append(f"| `{m}` | {len(each[m])} | {' | '.join(told)} | {min(average):.1f} |")
    return "\n".join([*lines, ""]) if each else ""


def loaded(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text("utf-8")) if path.is_file() else {}


def save(path: Path, found: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def main(args: list[str]) -> None:
    path, other = RESULTS / "streams.json", RESULTS / "streams_orders.json"
    found, more = loaded(path), loaded(other)
    named = [a for a in args if not a.startswith("-")]
    host = None if "--table" in args else open_host(minilm_folder())
    if "--orders" in args:
        for method, seed in [(m, s) for s in FURTHER for m in named or SIDES]:
            if str(seed) not in more.get(method, {}):
                print(method, seed, flush=True)
                made = run(method, host, FURTHER[seed], seed)
                more = loaded(other)
                more.setdefault(method, {})[str(seed)] = made
                save(other, more)
    elif host is not None:
        for method in named or [m for m in SIDES if m not in found]:
            print(method, flush=True)
            found[method] = run(method, host)
            save(path, found)
    text = "\n".join(t for t in (table(found), orders(found, more)) if t)
    (RESULTS / "streams.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
