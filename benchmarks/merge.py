"""Merging from disk to disk: wall time and peak anonymous memory, beside mergekit and beside a plain copy of the bytes.

python -m benchmarks.merge [--large] [--cores N] [--rounds N] [--small] [--methods a,b] [--old FOLDER]

Random Llama shapes in bfloat16, three models of 337 MB (--large: 2 GB, --small: 5 MB, to see that it runs). Each side
runs in a process of its own, pinned to the same processors, in turn; the clock runs from after the imports until the
result is on the disk (the copy is synchronised too, mergekit's result is not). MERGEKIT=FOLDER names where
`pip install --no-deps --target FOLDER mergekit==0.1.5` and what it needs were put; without it that side is left out.
--old names a checkout of an earlier build, which is then timed in turn with this one. The compiled loops are made
before the clock runs, as they are once for a machine.
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
from pathlib import Path

import torch
from safetensors.torch import save_file

from commonweight.merge.loops.load import WORTH, loops
from commonweight.merge.plan.figures import plan
from commonweight.merge.recipe import load
from commonweight.merge.recipe.build import build

from .harness import store

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
    out = []
    for k in range(3):
        path = folder / f"m{k}"
        path.mkdir()
        base, own = torch.Generator().manual_seed(0), torch.Generator().manual_seed(k)
        state = {}
        for name, shape in shapes.items():
            state[name] = 0.02 * torch.randn(shape, generator=base)
            if k:
                state[name] += 0.002 * torch.randn(shape, generator=own)
            state[name] = state[name].bfloat16()
        save_file(state, path / "model.safetensors", {"format": "pt"})
        (path / "config.json").write_text(json.dumps(config))
        out.append(path)
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


def main(
    size: str = "337 MB",
    cores: int = 2,
    rounds: int = 5,
    methods: tuple[str, ...] = tuple(METHODS),
    old: Path | None = None,
) -> list[dict]:
    there = os.environ.get("MERGEKIT")
    reason = None if there else "MERGEKIT names no folder with mergekit 0.1.5"
    rows = []
    loops(WORTH)  # made, if they are not yet
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_DIR")) as name:
        folder = Path(name)
        paths = models(folder, size)
        files = [str(p / "model.safetensors") for p in paths]
        bounds = {m: plan(build(load(bodies(m, paths)["ours"])), cores).memory / 2**20 for m in methods}
        found: dict[tuple[str, str], list[dict]] = {}
        for _ in range(rounds):
            found.setdefault(("copy", "copy"), []).append(timed(COPY, files, folder, cores))
            for method in methods:
                body = bodies(method, paths)
                found.setdefault((method, "ours"), []).append(timed(OURS, body["ours"], folder, cores))
                if old is not None:
                    run = timed(OURS, body["ours"], folder, cores, first=str(old / "src"))
                    found.setdefault((method, "old"), []).append(run)
                if reason is None and method in THEIRS:
                    try:
                        found.setdefault((method, "mergekit"), []).append(
                            timed(MERGEKIT, body["mergekit"], folder, cores, there)
                        )
                    except RuntimeError as e:
                        reason = f"mergekit does not run: {e}"
                        found.pop((method, "mergekit"), None)
    for (method, side), runs in found.items():
        seconds = statistics.median(r["seconds"] for r in runs)
        bound = f", bound {bounds[method]:.0f} MB" if side == "ours" else ""
        print(f"{method:12} {side:9} {seconds:8.2f} s  {max(r['mb'] for r in runs):7.0f} MB anonymous{bound}")
    if reason:
        print(f"mergekit is left out: {reason}")
    for method in methods:
        pairs = [
            ("copy", ("copy", "copy")), ("mergekit", (method, "mergekit")), ("old", (method, "old")),
            ("linear", ("linear", "ours")),
        ]  # fmt: skip
        for other, key in pairs:
            wanted = TARGETS.get(
                (method, other), 4.0 if other == "linear" and method not in ("linear", "ties") else None
            )
            if key in found and (wanted is not None or other in ("mergekit", "old")):
                rows.append(_row(method, other, size, cores, found[method, "ours"], found[key], wanted))
        mb = max(r["mb"] for r in found[method, "ours"])
        rows.append(
            {
                "what": f"peak anonymous MB of {method}, {size}", "unit": "memory", "target": MEMORY,
                "ratio": round(mb, 1), "spread": [round(min(r["mb"] for r in found[method, "ours"]), 1), round(mb, 1)],
            }
        )  # fmt: skip
    return rows


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
    asked.add_argument("--methods", default=",".join(METHODS))
    asked.add_argument("--old", type=Path, help="a checkout of an earlier build, timed in turn")
    a = asked.parse_args()
    chosen = "small" if a.small else "2 GB" if a.large else "337 MB"
    table = main(chosen, a.cores, a.rounds, tuple(a.methods.split(",")), a.old)
    for row in table:
        print(row)
    if not a.small:
        store("merge" if not a.large else "merge_large", table)
