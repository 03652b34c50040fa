"""Merging five real tasks on MiniLM: every method at its defaults, three seeds, against the models on their own.

Five models (or LoRA adapters) are trained from one base; their encoders are merged, every task keeps its own head, and
the merged encoder is measured on every task's test rows. Two figures a method: as it stands, and with one factor on the
whole change, theta_0 + s (theta - theta_0), chosen on the dev rows from the same list for every method.

    python -m benchmarks.merging_quality                    # all seeds, full fine-tuning and LoRA r16
    python -m benchmarks.merging_quality --kind full --seed 0 --methods ties,pcb

Models and results lie in .cache/merging and are not computed twice; the page is docs/results/merging.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

from commonweight import CommonweightError, merge
from commonweight.adapt import Classifier, adapt, evaluate, open_host, read
from commonweight.formats import atomic
from commonweight.host import Host
from commonweight.report.statistics import mean_interval

from .harness import machine
from .shapes import minilm_folder

ROOT = Path(__file__).parents[1]
DATA, CACHE, PAGE = ROOT / "demo" / "data", ROOT / ".cache" / "merging", ROOT / "docs" / "results" / "merging.md"
TASKS = ("trec", "sst2", "sst5", "mr", "cr")
SEEDS = (0, 1, 2)
KINDS = {"full": ("full", {}), "lora": ("lora", {"rank": 16})}
FACTORS = (0.2, 0.4, 0.7, 1.0, 1.4, 2.0)
NOT_FOR_TASKS = ("robust_signatures",)  # patches one model with others; it does not combine tasks
ROUTED = ("twin_merging", "skillpack")  # here by an ideal router: one model a task
PER_TASK = ("tall_masks", "emr", *ROUTED)
ROWS = 64  # of statistics, per task
Weights = dict[str, Tensor]


def trained(kind: str, seed: int) -> tuple[Host, dict[str, Weights], Weights, dict[str, float]]:
    """(host with one head a task, the tasks' models, their base, each model's own accuracy)."""
    folder = CACHE / f"{kind}-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    method, options = KINDS[kind]
    exact, host = open_host(minilm_folder(), dtype="float32"), open_host(minilm_folder())
    models: dict[str, Weights] = {}
    own: dict[str, float] = {}
    for task in TASKS:
        path = folder / f"{task}.safetensors"
        if not path.exists():
            train, dev = (read(DATA / f"{task}.{part}.tsv") for part in ("train", "dev"))
            adapt(host, task, train, method=method, options=options, dev_rows=dev, seed=seed)
            host.save(task, path)
            host.remove(task)
        own_head = exact.load("one", path)
        models[task] = {k: v.clone() for k, v in exact.merged("one").items()}
        head = host.add(task, "probe", labels=own_head.labels)
        with torch.no_grad():
            for name, pool in head.pools.items():
                pool.copy_(own_head.pools[name])
        if not (stats := folder / f"{task}.stats.safetensors").exists():
            collect(task, models[task], own_head.pools).save(stats)
        exact.remove("one")
    inside = dict(exact.model.named_parameters())
    base = {k: inside[k].detach().clone() for k in models[TASKS[0]]}
    for task in TASKS:
        put(host, models[task], base, 1.0)
        own[task] = accuracy(host, task, "test")
    return host, models, base, own


def collect(task: str, weights: Weights, head: Mapping[str, Tensor]) -> merge.Statistics:
    """Fisher diagonals and Gram matrices of one task's own model on its first training rows."""
    model = Classifier(AutoModel.from_pretrained(minilm_folder(), dtype=torch.float32))
    model.load_state_dict(weights, strict=False)
    w, b = (next(v for k, v in head.items() if k.endswith(end)).detach() for end in ("head.W", "head.b"))
    model.head = torch.nn.Linear(w.shape[1], w.shape[0])
    model.head.load_state_dict({"weight": w, "bias": b})
    rows = read(DATA / f"{task}.train.tsv")[:ROWS]
    tokens = AutoTokenizer.from_pretrained(minilm_folder())(
        [r["text"] for r in rows], padding=True, return_tensors="pt"
    )
    batch = {k: tokens[k] for k in ("input_ids", "attention_mask")}
    return merge.collect(model, [batch], ["fisher", "gram"], names=weights.__contains__)


@torch.no_grad()
def put(host: Host, weights: Weights, base: Weights, factor: float) -> None:
    """The host's base becomes base + factor * (weights - base): for measuring only."""
    inside = dict(host.model.named_parameters())
    for k, b in base.items():
        inside[k].copy_(b + factor * (weights[k].float() - b))


def accuracy(host: Host, task: str, part: str) -> float:
    return 100 * evaluate(host, task, read(DATA / f"{task}.{part}.tsv"))["accuracy"]


def measure(name: str, host: Host, models: dict[str, Weights], base: Weights, folder: Path) -> dict:
    """Test accuracies at factor 1 and at the factor that the dev rows choose."""
    method = merge.get(name)
    given = None if method.base == "none" else base

    def merged(i: int) -> Weights:
        extra = {"task": i} if "task" in method.options() else {}
        if name in ROUTED:
            extra = {"weights": [float(i == j) for j in range(len(TASKS))]}
        if method.data == "statistics":
            extra = {"statistics": [merge.open_statistics(folder / f"{t}.stats.safetensors", t) for t in TASKS]}
        return method(models, given, **extra)

    each = [merged(i) for i in range(len(TASKS))] if name in PER_TASK else [merged(0)] * len(TASKS)

    def score(part: str, factor: float) -> list[float]:
        out = []
        for task, weights in zip(TASKS, each):
            put(host, weights, base, factor)
            out.append(accuracy(host, task, part))
        return out

    plain = score("test", 1.0)
    best = max(FACTORS, key=lambda f: (statistics.mean(score("dev", f)), -abs(f - 1)))
    return {"plain": plain, "factor": best, "tuned": plain if best == 1.0 else score("test", best)}


def names() -> list[str]:
    """Methods that make one model of five, or one a task, from weights or statistics."""

    def takes(m: merge.Method) -> bool:
        low, high = m.models
        return m.data in ("none", "statistics") and low <= len(TASKS) and (high is None or high >= len(TASKS))

    return [n for n, m in merge.available().items() if takes(m) and n not in NOT_FOR_TASKS]


def run(kind: str, seed: int, wanted: list[str]) -> None:
    folder = CACHE / f"{kind}-{seed}"
    host, models, base, own = trained(kind, seed)
    atomic.write(folder / "own.json", json.dumps(own).encode())
    for name in wanted:
        path = folder / f"{name}.json"
        if path.exists():
            continue
        try:
            found = measure(name, host, models, base, folder)
        except CommonweightError as e:
            found = {"error": str(e)}
        atomic.write(path, json.dumps(found).encode())
        print(kind, seed, name, found, flush=True)


def table(kind: str) -> list[str]:
    """Markdown: one line a method, best first."""
    folders = [CACHE / f"{kind}-{s}" for s in SEEDS if (CACHE / f"{kind}-{s}" / "own.json").exists()]
    own = [json.loads((f / "own.json").read_text()) for f in folders]
    lines = []
    for name in names():
        runs = [json.loads(p.read_text()) if (p := f / f"{name}.json").exists() else None for f in folders]
        if not runs or any(r is None or "error" in r for r in runs):
            continue
        plain = [statistics.mean(r["plain"]) for r in runs]
        tuned = [statistics.mean(r["tuned"]) for r in runs]
        share = [
            statistics.mean(100 * a / o[t] for a, t in zip(r["tuned"], TASKS)) for r, o in zip(runs, own, strict=True)
        ]
        mean, half = mean_interval(share)
        factors = ", ".join(f"{r['factor']:g}" for r in runs)
        whose = "one a task" if name in PER_TASK else "one"
        spread = "" if half is None else f" ± {half:.1f}"
        lines.append(
            (mean, f"| `{name}` | {whose} | {statistics.mean(plain):.1f} | {statistics.mean(tuned):.1f} | "
            f"{mean:.1f}{spread} | {factors} |")
        )  # fmt: skip
    alone = statistics.mean(statistics.mean(o.values()) for o in own)
    head = [
        f"Each model alone: {alone:.1f} points in the mean of the five tasks ({len(folders)} seeds).",
        "",
        "| method | models | accuracy | with a factor from dev | of the single models (%), 95 % interval | factors |",
        "| --- | --- | ---: | ---: | ---: | --- |",
    ]
    return [*head, *(line for _, line in sorted(lines, reverse=True))]


TITLES = {"full": "Full fine-tuning (all weights of the blocks)", "lora": "LoRA adapters of rank 16, merged as weights"}


def page() -> str:
    now = machine()
    parts = [
        "# Merging five tasks",
        "",
        "Five classification tasks (trec, sst2, sst5, mr, cr; 1,000 training rows each, shipped in `demo/data`), base",
        "MiniLM of 6 layers. Every task keeps its own head. *Accuracy*: the merged model as the method's defaults make",
        "it. *With a factor from dev*: one factor on the whole change, from "
        + ", ".join(f"{f:g}" for f in FACTORS)
        + ", the same list for every",
        "method, chosen on 200 dev rows a task. Test rows: 377 to 500 a task.",
        "",
        "    python -m benchmarks.merging_quality",
        "",
    ]
    for kind in KINDS:
        if (CACHE / f"{kind}-{SEEDS[0]}" / "own.json").exists():
            parts += [f"## {TITLES[kind]}", "", *table(kind), ""]
    parts += [f"torch {now['torch']}, {now['cpu']}, {now['date']}."]
    return "\n".join(parts) + "\n"


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--kind", choices=KINDS, action="append")
    p.add_argument("--seed", type=int, choices=SEEDS, action="append")
    p.add_argument("--methods", help="names, with commas; all that need no data without it")
    p.add_argument("--page", action="store_true", help="only write the page from what was measured")
    given = p.parse_args()
    if not given.page:
        for kind in given.kind or KINDS:
            for seed in given.seed or SEEDS:
                run(kind, seed, given.methods.split(",") if given.methods else names())
    PAGE.parent.mkdir(exist_ok=True)
    atomic.write(PAGE, page().encode())


if __name__ == "__main__":
    main()
