"""Merging from disk to disk: wall time and peak anonymous memory, beside mergekit and beside a plain copy of the bytes.

python -m benchmarks.merge [--large] [--cores N] [--rounds N] [--minutes N] [--small] [--methods a,b] [--old FOLDER]
                           [--models FOLDER]

Random Llama shapes in bfloat16, three models of 337 MB (--large: 2 GB, --small: 5 MB, to see that it runs). Each side
runs in a process of its own, pinned to the same processors, in turn; the clock runs from after the imports until the
result is on the disk (the copy is synchronised too, mergekit's result is not). MERGEKIT=FOLDER names where
`pip install --no-deps --target FOLDER mergekit==0.1.5` and what it needs were put; without it that side is left out.
--old names a checkout of an earlier build, which is then timed in turn with this one. The compiled loops are made
before the clock runs, as they are once for a machine. --models: where the models are made, or lie from an earlier run.

One method comes after the other, each with one round at least, and with more (--rounds at most) as long as --minutes
allow (10; 12 if --large). Each says what it found as soon as it is done, and its rows then take the place of the
same rows among the results; others stay, so that methods can be measured in several runs.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save_file

from commonweight.merge.loops.load import WORTH, loops
from commonweight.merge.plan.figures import plan
from commonweight.merge.recipe import load
from commonweight.merge.recipe.build import build

from .harness import RESULTS, store

SIZES = {"small": (2000, 128, 352, 2), "337 MB": (32000, 1024, 2816, 8), "2 GB": (32000, 2048, 8192, 13)}
METHODS: dict[str, dict] = {
    "linear": {},
    "ties": {"density": 0.2},
    "dare_linear": {"density": 0.5},
    "dare_ties": {"density": 0.5},
    "della": {"density": 0.5},
    "sce": {},
    "breadcrumbs": {"density": 0.15, "gamma": 0.01},
    "pcb": {},
    "lines": {},
}
THEIRS = ("linear", "ties", "dare_linear", "sce", "breadcrumbs")
THEIRS_LARGE = ("linear", "ties")  # the others would take a minute and more each
TARGETS = {
    ("linear", "mergekit"): 0.5, ("linear", "copy"): 1.3, ("ties", "mergekit"): 0.04,
    ("linear", "old"): 0.7, ("ties", "old"): 0.5, ("breadcrumbs", "old"): 0.4, ("pcb", "old"): 0.4,
    ("dare_linear", "old"): 0.6, ("dare_ties", "old"): 0.6, ("della", "old"): 0.6, ("sce", "old"): 0.6,
}  # fmt: skip
MEMORY = 200.0  # MB
NO_BASE = "linear"

OURS = """
import json, sys, time
from commonweight.merge import make
body, out = json.loads(sys.argv[1]), sys.argv[2]
start = time.perf_counter()
make(body, out)
print(time.perf_counter() - start)
"""
MERGEKIT = """
import json, sys, time
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
body, out = json.loads(sys.argv[1]), sys.argv[2]
start = time.perf_counter()
run_merge(MergeConfiguration.model_validate(body), out, options=MergeOptions(quiet=True, copy_tokenizer=False))
print(time.perf_counter() - start)
"""
COPY = """
import json, os, sys, time
body, out = json.loads(sys.argv[1]), sys.argv[2]
os.mkdir(out)
start = time.perf_counter()
buffer = memoryview(bytearray(1 << 20))
target = os.open(out + "/copy", os.O_WRONLY | os.O_CREAT)
for i, name in enumerate(body):
    source, at = os.open(name, os.O_RDONLY), 0
    while n := os.preadv(source, [buffer], at):
        if i == 0:
            os.pwrite(target, buffer[:n], at)
        at += n
os.fsync(target)
print(time.perf_counter() - start)
"""


def models(folder: Path, size: str) -> list[Path]:
    vocab, hidden, inner, layers = SIZES[size]
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(("model.embed_tokens.weight", "lm_head.weight"), (vocab, hidden))
    shapes["model.norm.weight"] = (hidden,)
    for i in range(layers):
        name = f"model.layers.{i}."
        shapes |= {f"{name}self_attn.{n}_proj.weight": (hidden, hidden) for n in "qkvo"}
        shapes |= {f"{name}mlp.{n}_proj.weight": (inner, hidden) for n in ("gate", "up")}
        shapes[f"{name}mlp.down_proj.weight"] = (hidden, inner)
        shapes |= {f"{name}{n}_layernorm.weight": (hidden,) for n in ("input", "post_attention")}
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": hidden, "vocab_size": vocab,
        "intermediate_size": inner, "num_hidden_layers": layers, "num_attention_heads": 8, "num_key_value_heads": 8,
        "torch_dtype": "bfloat16", "tie_word_embeddings": False,
    }  # fmt: skip
    out = [folder / f"m{k}" for k in range(3)]
    if all((path / "config.json").exists() for path in out):
        return out
    base, own = torch.Generator().manual_seed(0), {k: torch.Generator().manual_seed(k) for k in (1, 2)}
    states: list[dict] = [{} for _ in out]
    for name, shape in shapes.items():
        root = 0.02 * torch.randn(shape, generator=base)
        states[0][name] = root.bfloat16()
        for k, g in own.items():
            states[k][name] = torch.randn(shape, generator=g).mul_(0.002).add_(root).bfloat16()
    for path, state in zip(out, states):
        path.mkdir(parents=True, exist_ok=True)
        save_file(state, path / "model.safetensors", {"format": "pt"})
        (path / "config.json").write_text(json.dumps(config))
    return out


def bodies(method: str, paths: list[Path]) -> dict[str, dict]:
    """Each side's recipe. Methods with a base have two models on it, so that all read three."""
    options = METHODS[method]
    names = [str(p) for p in paths]
    others = names if method == NO_BASE else names[1:]
    ours = {"method": method, "models": others, "options": options}
    theirs: dict = {"merge_method": method, "dtype": "bfloat16", "parameters": dict(options)}
    theirs["models"] = [{"model": n, "parameters": {"weight": 1.0}} for n in others]
    if method != NO_BASE:
        ours["base"] = theirs["base_model"] = names[0]
    return {"ours": ours, "mergekit": theirs}


def timed(
    code: str, body: object, folder: Path, cores: int, path: str | None = None, first: str | None = None
) -> dict[str, float]:
    """Seconds, and the peak of anonymous memory in MB, sampled every 5 ms. path, first: where modules are looked for
    after and before the usual places."""
    out = folder / "out"
    env = {**os.environ, "OMP_NUM_THREADS": str(cores)}
    if path:
        env["PYTHONPATH"] = os.pathsep.join([*filter(None, [os.environ.get("PYTHONPATH")]), path])
    if first:
        env["PYTHONPATH"] = os.pathsep.join([first, *filter(None, [env.get("PYTHONPATH")])])
    command = [sys.executable, "-W", "ignore", "-c", code, json.dumps(body), str(out)]
    free = sorted(os.sched_getaffinity(0))[:cores]
    run = subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: os.sched_setaffinity(0, free),
    )  # fmt: skip
    peak = 0
    while run.poll() is None:
        peak = max(peak, anonymous(run.pid))
        time.sleep(0.005)
    said, wrong = run.communicate()
    shutil.rmtree(out, ignore_errors=True)
    if run.returncode:
        raise RuntimeError(wrong.strip().splitlines()[-1] if wrong.strip() else "it failed")
    return {"seconds": float(said.strip().splitlines()[-1]), "mb": peak / 1024}


def anonymous(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("RssAnon")), 0)


class Sides(NamedTuple):
    """What is run: on which models, where, on how many processors; the old build's and mergekit's folders."""

    size: str
    paths: list[Path]
    folder: Path
    cores: int
    old: Path | None
    mergekit: str | None

    def of(self, method: str) -> dict[str, Callable[[], dict[str, float]]]:
        body, at = bodies(method, self.paths), (self.folder, self.cores)
        out = {"ours": lambda: timed(OURS, body["ours"], *at)}
        if self.old is not None:
            first = str(self.old / "src")
            out["old"] = lambda: timed(OURS, body["ours"], *at, first=first)
        if method == NO_BASE:
            files = [str(p / "model.safetensors") for p in self.paths]
            out["copy"] = lambda: timed(COPY, files, *at)
        if self.mergekit and method in (THEIRS_LARGE if self.size == "2 GB" else THEIRS):
            out["mergekit"] = lambda: timed(MERGEKIT, body["mergekit"], *at, self.mergekit)
        return out


def measured(sides: Sides, method: str, rounds: int, until: float) -> dict[str, list[dict]]:
    """Side -> runs, of one method. After the first round only what was done by `until` (of time.monotonic), as far as
    one can tell: first mergekit is left out, which takes longest."""
    found: dict[str, list[dict]] = {}
    took: dict[str, float] = {}
    for i in range(rounds):
        for side, run in sides.of(method).items():
            if i and (side not in took or time.monotonic() + took[side] > until):
                took.pop(side, None)
                continue
            start = time.monotonic()
            try:
                found.setdefault(side, []).append(run())
            except RuntimeError as e:
                if side != "mergekit":
                    raise
                print(f"mergekit does not run: {e}", flush=True)
                found.pop(side, None)
                continue
            took[side] = time.monotonic() - start
            last = found[side][-1]
            print(f"{method:12} {side:9} {last['seconds']:8.2f} s  {last['mb']:7.0f} MB anonymous", flush=True)
    return found


def rows(sides: Sides, method: str, found: dict[str, list[dict]]) -> list[dict]:
    out = []
    for other in ("copy", "mergekit", "old"):
        if other in found:
            target = TARGETS.get((method, other))
            out.append(_row(method, other, sides.size, sides.cores, found["ours"], found[other], target))
    peaks = [round(r["mb"], 1) for r in found["ours"]]
    what = f"peak anonymous MB of {method}, {sides.size}"
    spread = [min(peaks), max(peaks)]
    return [*out, {"what": what, "unit": "memory", "target": MEMORY, "ratio": max(peaks), "spread": spread}]


def main(
    size: str = "337 MB",
    cores: int = 2,
    rounds: int = 5,
    methods: tuple[str, ...] = tuple(METHODS),
    old: Path | None = None,
    minutes: float = 10.0,
    made: Path | None = None,
    keep: Callable[[list[dict]], None] = lambda rows: None,
) -> list[dict]:
    """The rows of all methods; `keep` is given each one's as soon as it is measured."""
    until, out = time.monotonic() + 60 * minutes, []
    there = os.environ.get("MERGEKIT")
    if not there:
        print("mergekit is left out: MERGEKIT names no folder with mergekit 0.1.5", flush=True)
    loops(WORTH)  # made, if they are not yet
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_DIR")) as name:
        sides = Sides(size, models(made or Path(name), size), Path(name), cores, old, there)
        for i, method in enumerate(methods):
            now = time.monotonic()
            found = measured(sides, method, rounds, now + (until - now) / (len(methods) - i))
            bound = plan(build(load(bodies(method, sides.paths)["ours"])), cores).memory / 2**20
            out += (mine := rows(sides, method, found))
            for row in mine:
                more = f"of at most {bound:.0f}" if row["unit"] == "memory" else f"{row['rounds']} rounds"
                print(f"  {row['what']}: {row['ratio']} (wanted {row['target']}), {row['spread']}, {more}", flush=True)
            keep(mine)
    return out


def beside(name: str, new: list[dict]) -> None:
    """Stores rows among those that are there, in the place of those that say the same."""
    path = RESULTS / f"{name}.json"
    known = {r["what"]: r for r in json.loads(path.read_text())["rows"]} if path.exists() else {}
    store(name, list((known | {r["what"]: r for r in new}).values()))


def _row(
    method: str, other: str, size: str, cores: int, ours: list[dict], theirs: list[dict], target: float | None
) -> dict:
    ratios = sorted(a["seconds"] / b["seconds"] for a, b in zip(ours, theirs))
    return {
        "what": f"{method} / {other}, three models of {size}, {cores} cores", "unit": "time", "target": target,
        "ours_s": round(statistics.median(r["seconds"] for r in ours), 3),
        "theirs_s": round(statistics.median(r["seconds"] for r in theirs), 3),
        "ratio": round(statistics.median(ratios), 3), "spread": [round(ratios[0], 3), round(ratios[-1], 3)],
        "rounds": len(ratios), "ours_mb": round(max(r["mb"] for r in ours), 1),
        "theirs_mb": round(max(r["mb"] for r in theirs), 1),
    }  # fmt: skip


if __name__ == "__main__":
    asked = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    asked.add_argument("--large", action="store_true")
    asked.add_argument("--small", action="store_true")
    asked.add_argument("--cores", type=int, default=2)
    asked.add_argument("--rounds", type=int, default=5)
    asked.add_argument("--minutes", type=float, help="how long all may take, as far as first rounds let it")
    asked.add_argument("--methods", default=",".join(METHODS))
    asked.add_argument("--old", type=Path, help="a checkout of an earlier build, timed in turn")
    asked.add_argument("--models", type=Path, help="a folder for the models, kept for the next run")
    a = asked.parse_args()
    chosen = "small" if a.small else "2 GB" if a.large else "337 MB"
    lasts = a.minutes or (12 if a.large else 10)
    known = "merge_large" if a.large else "merge"
    names = tuple(a.methods.split(","))
    saved = (lambda rows: None) if a.small else (lambda rows: beside(known, rows))
    table = main(chosen, a.cores, a.rounds, names, a.old, lasts, a.models, saved)
    if not a.small and set(names) == set(METHODS):
        store(known, table)  # what is measured no more goes
