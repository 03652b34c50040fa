"""What a codec costs: accuracy of real tenants before and after, the bytes of their files, the error of their pools.

Trains four methods on two tasks with two seeds (1,000 rows each, the best state on 200 dev rows), saves every
tenant with every codec, loads it and measures it on the task's test rows of demo/data. "alpha": the change that was
loaded is scaled by the best of a few numbers on the dev rows, as ComPEFT does, and saved and loaded once more.

    python -m benchmarks.codecs [FOLDER]

FOLDER: keeps the trained tenants as plain files there, with what was measured; what it has is not done again.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from commonweight import Host, Tenant
from commonweight.adapt import adapt, evaluate, open_host, read
from commonweight.formats.native import read_header

from .accuracy import DATA
from .harness import store
from .shapes import minilm_folder

TASKS = ("trec", "sst2")
SEEDS = (0, 1)
METHODS: dict[str, tuple[dict[str, Any], float | None]] = {  # options, learning rate (None: the method's own)
    "lora": ({"rank": 16}, 1e-3),
    "mos": ({"rank": 16, "budget": 2}, 4e-3),
    "vb-lora": ({}, None),
    "lora-xs": ({"rank": 16}, None),
}
CODECS = (
    "bfloat16",
    "int8",
    "int4",
    "compeft:density=0.5",
    "compeft:density=0.2",
    "compeft:density=0.2, alpha",
    "compeft:density=0.05",
    "compeft:density=0.05, alpha",
)
ALPHAS = (0.5, 0.75, 1.0, 1.5, 2.0, 3.0)


def trained(host: Host, method: str, task: str, seed: int, kept: Path) -> Path:
    """The tenant's plain file, its test accuracy in the header."""
    path = kept / f"{method}-{task}-{seed}.safetensors"
    if not path.exists():
        options, lr = METHODS[method]
        train, dev, test = (read(DATA / f"{task}.{part}.tsv") for part in ("train", "dev", "test"))
        adapt(host, "t", train, method=method, options=options, dev_rows=dev, seed=seed, lr=lr)
        host.save("t", path, {"accuracy": evaluate(host, "t", test)["accuracy"]})
        host.remove("t")
    return path


@torch.no_grad()
def error(after: Tenant, before: Tenant, fresh: Tenant) -> float:
    """Norm of what the codec changed over the norm of what training changed, all trained pools together."""
    by_codec, by_training = (
        sum((a.pools[n] - b.pools[n]).double().square().sum().item() for n, _ in before.named_parameters())
        for a, b in ((after, before), (before, fresh))
    )
    return (by_codec / by_training) ** 0.5


@torch.no_grad()
def tune(host: Host, name: str, fresh: Tenant, dev: list[dict]) -> None:
    """Scales the change from `fresh` by that one of `ALPHAS` which answers the dev rows best."""
    tenant = host[name]
    start = {n: p.clone() for n, p in tenant.named_parameters()}

    def scaled(alpha: float) -> float:
        for n, p in tenant.named_parameters():
            p.copy_(torch.lerp(fresh.pools[n], start[n], alpha))
        return evaluate(host, name, dev)["accuracy"]

    scaled(max(ALPHAS, key=scaled))


def measure(host: Host, method: str, task: str, seed: int, kept: Path) -> list[dict[str, Any]]:
    plain = trained(host, method, task, seed, kept)
    done = plain.with_suffix(".json")
    if done.exists():
        return json.loads(done.read_text())
    dev, test = (read(DATA / f"{task}.{part}.tsv") for part in ("dev", "test"))
    was = read_header(plain)["metrics"]["accuracy"]
    before = host.load("plain", plain)
    fresh = host.add("fresh", method, seed=seed, labels=before.labels, **METHODS[method][0])
    out = []
    with tempfile.TemporaryDirectory() as tmp:
        for codec in CODECS:
            spec, _, alpha = codec.partition(", ")
            path = host.save("plain", Path(tmp) / "coded.safetensors", codec=spec)
            host.load("coded", path)
            if alpha:
                tune(host, "coded", fresh, dev)
                host.save("coded", path, codec=spec)
                host.remove("coded")
                host.load("coded", path)
            accuracy = evaluate(host, "coded", test)["accuracy"]
            out.append(
                {
                    "method": method, "task": task, "seed": seed, "codec": codec,
                    "points": 100 * (accuracy - was), "before": 100 * was, "after": 100 * accuracy,
                    "ratio": path.stat().st_size / plain.stat().st_size, "bytes": path.stat().st_size,
                    "error": error(host["coded"], before, fresh),
                }
            )  # fmt: skip
            host.remove("coded")
            print(json.dumps(out[-1]), flush=True)
    host.remove("plain")
    host.remove("fresh")
    done.write_text(json.dumps(out))
    return out


def main(kept: Path | None = None) -> list[dict]:
    host = open_host(minilm_folder())
    with tempfile.TemporaryDirectory() as tmp:
        found = [
            one
            for seed in SEEDS
            for task in TASKS
            for method in METHODS
            for one in measure(host, method, task, seed, kept or Path(tmp))
        ]
    rows = []
    for method in METHODS:
        for codec in CODECS:
            mine = [f for f in found if (f["method"], f["codec"]) == (method, codec)]
            mean = {k: statistics.mean(f[k] for f in mine) for k in ("points", "before", "after", "ratio", "error")}
            by_seed = [statistics.mean(f["points"] for f in mine if f["seed"] == s) for s in SEEDS]
            rows.append(
                {
                    "what": f"accuracy of {method} stored as {codec} - as float32, mean of {len(TASKS)} tasks, "
                    f"{len(SEEDS)} seeds",
                    "unit": "points",
                    "target": None,
                    "method": method,
                    "codec": codec,
                    "ours": round(mean["after"], 2),
                    "theirs": round(mean["before"], 2),
                    "difference": round(mean["points"], 2),
                    "spread": [round(min(by_seed), 2), round(max(by_seed), 2)],
                    "worst": round(min(f["points"] for f in mine), 2),
                    "bytes_over_float32": round(mean["ratio"], 4),
                    "error": round(mean["error"], 4),
                }
            )
    store("codecs", rows)
    return rows


def table(rows: list[dict]) -> str:
    """The table of the documentation."""
    lines = [
        "| method | codec | file, of float32 | error of the change | accuracy, change | seeds | worst tenant |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for r in rows:
        low, high = r["spread"]
        lines.append(
            f"| {r['method']} ({r['theirs']:.1f}) | {r['codec']} | 1/{1 / r['bytes_over_float32']:.1f} | "
            f"{100 * r['error']:.1f} % | {r['difference']:+.2f} | {low:+.2f} to {high:+.2f} | {r['worst']:+.1f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(main(Path(sys.argv[1]) if len(sys.argv) > 1 else None)))
