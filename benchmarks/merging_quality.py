"""Merging five real tasks on MiniLM: every method at its defaults, three seeds, against the models on their own.

Five models (or LoRA adapters) are trained from one base; their encoders are merged, every task keeps its own head, and
the merged encoder is measured on every task's test rows. Two figures a method: as it stands, and with one factor on the
whole change, theta_0 + s (theta - theta_0), chosen on the dev rows from the same list for every method.

    python -m benchmarks.merging_quality                    # all seeds, full fine-tuning and LoRA r16
    python -m benchmarks.merging_quality --kind full --seed 0 --methods ties,pcb

Methods that learn do so on dev rows, in the small budget of `merging_learn`, whose rows and steps the page tells.
Models and results lie in .cache/merging and are not computed twice; the page is docs/results/merging.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

from commonweight import CommonweightError, merge
from commonweight.adapt import Classifier, adapt, evaluate, open_host, read
from commonweight.formats import atomic
from commonweight.host import Host

from . import merging_learn, merging_page
from .merging_setting import ANCHOR, CACHE, DATA, FACTORS, KINDS, MEASURED, PER_TASK, ROUTED, ROWS, SEEDS, TASKS, names
from .overlap import without
from .shapes import minilm_folder

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


def _head(pools: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    w, b = (next(v for k, v in pools.items() if k.endswith(end)).detach() for end in ("head.W", "head.b"))
    return w, b


def collect(task: str, weights: Weights, head: Mapping[str, Tensor]) -> merge.Statistics:
    """Fisher diagonals and Gram matrices of one task's own model on its first training rows."""
    model = Classifier(AutoModel.from_pretrained(minilm_folder(), dtype=torch.float32))
    model.load_state_dict(weights, strict=False)
    w, b = _head(head)
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


@lru_cache
def unseen(task: str, part: str) -> list[dict]:
    """The rows that no task's model was trained on."""
    trained_on = [r for t in TASKS for r in read(DATA / f"{t}.train.tsv")]
    return without(read(DATA / f"{task}.{part}.tsv"), trained_on)


def accuracy(host: Host, task: str, part: str) -> float:
    return 100 * evaluate(host, task, unseen(task, part)[: MEASURED[part]])["accuracy"]


def measure(name: str, host: Host, models: dict[str, Weights], base: Weights, folder: Path, steps: int | None) -> dict:
    """Test accuracies at factor 1 and at the factor that the dev rows choose."""
    method = merge.get(name)
    given, learned = None if method.base == "none" else base, {}
    started = time.perf_counter()
    if method.learn is not None:
        heads = {t: _head(host[t].pools) for t in TASKS}
        rows = {t: (unseen(t, "dev"), host[t].labels or ()) for t in TASKS}
        models, learned = merging_learn.learn(name, models, base, heads, rows, steps)
    seconds = time.perf_counter() - started
    if name == "bayesian":
        models = {**models, "anchor": merge.get(ANCHOR)(models, base)}

    def merged(i: int) -> Weights:
        extra: dict[str, Any] = {"task": i} if "task" in method.options() else dict(learned)
        if name in ROUTED:
            extra = {"weights": [float(i == j) for j in range(len(TASKS))]}
        if "statistics" in method.options():
            extra["statistics"] = [merge.open_statistics(folder / f"{t}.stats.safetensors", t) for t in TASKS]
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
    out = {"plain": plain, "factor": best, "tuned": plain if best == 1.0 else score("test", best)}
    return {**out, "seconds": round(seconds, 1), "steps": steps} if learned or method.learn else out


def run(kind: str, seed: int, wanted: list[str], steps: int | None) -> None:
    folder = CACHE / f"{kind}-{seed}"
    host, models, base, own = trained(kind, seed)
    atomic.write(folder / "own.json", json.dumps(own).encode())
    for name in wanted:
        path = folder / f"{name}.json"
        if path.exists():
            continue
        try:
            found = measure(name, host, models, base, folder, steps)
        except CommonweightError as e:
            found = {"error": str(e)}
        atomic.write(path, json.dumps(found).encode())
        print(kind, seed, name, found, flush=True)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--kind", choices=KINDS, action="append")
    p.add_argument("--seed", type=int, choices=SEEDS, action="append")
    p.add_argument("--methods", help="names, with commas; without it all")
    p.add_argument("--steps", type=int, help="of methods that learn, instead of their budget; for a quick look")
    p.add_argument("--page", action="store_true", help="only write the page from what was measured")
    given = p.parse_args()
    if not given.page:
        for kind in given.kind or KINDS:
            for seed in given.seed or SEEDS:
                run(kind, seed, given.methods.split(",") if given.methods else names(), given.steps)
    merging_page.write()


if __name__ == "__main__":
    main()
