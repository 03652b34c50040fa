"""Twenty tasks one after another: the bytes of the store, and the accuracy, beside twenty LoRA r16 tenants.

The tasks are pairs of classes: the ten pairs of trec's five frequent classes, and the ten pairs of sst5's, in turns. At
most 160 training rows each; accuracy on all test rows of the pair, after the last task.

    python -m benchmarks.stream_bytes                  # those that docs/results/stream_bytes.json lacks; then the table
    python -m benchmarks.stream_bytes share            # these anew
    python -m benchmarks.stream_bytes --table
"""

from __future__ import annotations

import itertools
import statistics
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from commonweight import lifelong
from commonweight.adapt import Data, evaluate, open_host, read

from .shapes import minilm_folder
from .streams import DATA, RECIPE, RESULTS, loaded, save

TRAIN = 160
Rows = list[dict[str, Any]]
SIDES: dict[str, tuple[dict[str, Any], float]] = {  # options, learning rate
    "separate": ({"rank": 16}, 2e-3), "share": ({"k": 8, "rank": 8}, 1e-2), "l2p": ({}, 1e-2), "coso": ({}, 2e-3),
    "sequential": ({"rank": 16}, 2e-3),
}  # fmt: skip
FILE = RESULTS / "stream_bytes.json"


def tasks() -> dict[str, tuple[Rows, Rows]]:
    """name -> (training rows, test rows)."""
    found = {n: (read(DATA / f"{n}.train.tsv"), read(DATA / f"{n}.test.tsv")) for n in ("trec", "sst5")}
    out: list[list[tuple[str, tuple[Rows, Rows]]]] = []
    for name, (train, test) in found.items():
        common = [c for c, _ in Counter(str(r["label"]) for r in train).most_common(5)]
        pairs = itertools.combinations(sorted(common), 2)
        out.append([
            (f"{name}-{a}-{b}", tuple([r for r in rows if str(r["label"]) in (a, b)] for rows in (train, test)))
            for a, b in pairs
        ])  # type: ignore[arg-type] # fmt: skip
    return {n: (train[:TRAIN], test) for pair in zip(*out) for n, (train, test) in pair}


def run(method: str, host: Any) -> dict[str, Any]:
    options, lr = SIDES[method]
    given = tasks()
    with tempfile.TemporaryDirectory() as folder:
        made = lifelong.learn(
            host, {n: Data(rows=train) for n, (train, _) in given.items()}, Path(folder) / "shop", method=method,
            options=options, say=print, **{**RECIPE, "lr": lr},
        )  # fmt: skip
        scores = {}
        for n, label in made.tenants.items():
            host.load_from(made.store, label, as_=n)
            scores[n] = evaluate(host, n, given[n][1])["accuracy"]
            host.remove(n)
    stages = made.record["stages"]
    return {
        "options": options, "lr": lr, "scores": scores, "average": statistics.mean(scores.values()),
        "bytes": [s["bytes"]["all"] for s in stages], "parts": stages[-1]["bytes"],
    }  # fmt: skip


def table(found: Mapping[str, Mapping[str, Any]]) -> str:
    lines = [
        "# Bytes after twenty tasks", "",
        f"Ten pairs of trec's five frequent classes and ten of sst5's, in turns, on MiniLM: at most {TRAIN} training "
        f"rows each, {RECIPE['epochs']} epochs. Accuracy is the mean of the twenty tasks on their test rows in "
        "demo/data, after the last task, the task told; one order, one seed: a difference of less than a point and a "
        "half says nothing. Bytes are all of the store's for the newest tenants, and what is carried over. "
        "`python -m benchmarks.stream_bytes` makes it.", "",
        "| method | options | accuracy | difference | bytes | of separate's | after 10 tasks |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]  # fmt: skip
    first = found.get("separate")
    for m in sorted(found, key=lambda m: -found[m]["bytes"][-1]):
        r = found[m]
        told = ", ".join(f"{k}={v}" for k, v in r["options"].items()) or "-"
        apart = f"{100 * (r['average'] - first['average']):+.1f}" if first else "-"
        share = f"1/{first['bytes'][-1] / r['bytes'][-1]:.1f}" if first else "-"
        cells = [f"`{m}`", told, f"{100 * r['average']:.1f}", apart, f"{r['bytes'][-1]:,}", share, f"{r['bytes'][9]:,}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def main(args: list[str]) -> None:
    found = loaded(FILE)
    wanted = [] if "--table" in args else args or [m for m in SIDES if m not in found]
    host = open_host(minilm_folder()) if wanted else None
    for method in wanted:
        print(method, flush=True)
        found[method] = run(method, host)
        save(FILE, found)
    FILE.with_suffix(".md").write_text(table(found), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
