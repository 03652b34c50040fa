"""The five sentence tasks one after another: what each lifelong method forgets, and what it keeps.

160 training rows a task, accuracy on 100 of its test rows after every stage; one order, one seed.

    python -m benchmarks.streams                 # those that docs/results/streams.json lacks; then the table
    python -m benchmarks.streams ewc replay      # these anew
    python -m benchmarks.streams --table         # the table alone
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from commonweight import lifelong
from commonweight.adapt import Data, open_host, read

from .shapes import minilm_folder

ROOT = Path(__file__).parents[1]
DATA, RESULTS = ROOT / "demo" / "data", ROOT / "docs" / "results"
ORDER = ("trec", "sst2", "cr", "sst5", "mr")
TRAIN, TEST = 160, 100
RECIPE: dict[str, Any] = {"epochs": 3, "batch_size": 32, "lr": 2e-3, "max_length": 32, "seed": 0}
SIDES: dict[str, dict[str, Any]] = {
    "sequential": {"rank": 8}, "separate": {"rank": 8}, "replay": {"rank": 8, "rows": 16}, "coso": {}, "mos": {},
    "lwf": {"rank": 8}, "joint": {"rank": 8}, "ewc": {"rank": 8, "rows": 32}, "o-lora": {"rank": 8},
    "spu": {"rows": 64}, "k-fpf": {"rank": 8, "rows": 16}, "conpet": {"rank": 8, "rows": 16, "batches": 15},
    "par": {"rank": 8}, "inflora": {"rank": 8, "rows": 64},
}  # fmt: skip
ABOUT = (
    f"{', '.join(ORDER)}, one after another on MiniLM (all-MiniLM-L6-v2): {TRAIN} training rows each, "
    f"{RECIPE['epochs']} epochs, LoRA r8 where the adapter can be chosen. Accuracy on "
    f"{TEST} test rows of demo/data; the task is told, but for what stands in brackets, where the method found it. One "
    "order, one seed: differences of less than six points say nothing. Bytes are those of the store at the end, "
    "seconds those of training on a busy machine. `python -m benchmarks.streams` makes it; "
    "[Streams of tasks](../streams.md) says what the figures are."
)


def run(method: str, host: Any) -> dict[str, Any]:
    """A stream's figures, in a store that is thrown away."""
    tasks = {n: Data(rows=read(DATA / f"{n}.train.tsv")[:TRAIN]) for n in ORDER}
    evals = {n: read(DATA / f"{n}.test.tsv")[:TEST] for n in ORDER}
    with tempfile.TemporaryDirectory() as folder:
        made = lifelong.learn(
            host,
            tasks,
            Path(folder) / "shop",
            method=method,
            options=SIDES[method],
            evals=evals,
            say=print,
            **RECIPE,
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


def main(args: list[str]) -> None:
    path = RESULTS / "streams.json"
    found = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    wanted = [] if "--table" in args else args or [m for m in SIDES if m not in found]
    host = open_host(minilm_folder()) if wanted else None
    for method in wanted:
        print(method, flush=True)
        found[method] = run(method, host)
        path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    (RESULTS / "streams.md").write_text(table(found), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
