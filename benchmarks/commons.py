"""What a late tenant costs, and what it is worth: leave one task out, train the others together, freeze, add the fifth.

Per candidate, held-out task and seed: the pools of a common are trained on the other four tasks in mixed batches, less
the rows that the held-out task has in its dev or test rows (sst2, sst5 and mr are cut from the same reviews); then
the held-out task comes late and trains its own pools alone. Beside it LoRA of rank 16, trained alone and stored in
bfloat16. Both are measured as a file with their codec gives them back. Bytes are those of the pools as published, with
and without the head; "store" is what `commonweight store list` calls marginal, files and manifest included.

1,000 training rows a task, the best state on 200 dev rows, accuracy on the 377 to 500 test rows of demo/data.

    python -m benchmarks.commons [CANDIDATE ...] [--seeds 0 1 2] [--tasks trec ...] [--data FOLDER] [--cache FOLDER]
    python -m benchmarks.commons --table            from what is in the cache, without training; other rows stay

--data: whole sets, FOLDER/<task>.train.tsv, .dev.tsv and .test.tsv. Every cell is kept in the cache and not done again,
so that the whole may run in pieces, and in several processes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

import commonweight as cw
from commonweight.adapt import Data, adapt, adapt_together, evaluate, open_host, read
from commonweight.formats import atomic, coding, native
from commonweight.host.files import settle

from .accuracy import DATA, SEEDS, TASKS
from .harness import RESULTS, store
from .overlap import without
from .shapes import minilm_folder

CACHE = Path(__file__).parents[1] / ".cache" / "commons"


@dataclass(frozen=True)
class Candidate:
    """codec: of the tenant's own pools, head included. together, late: the recipes; lr None is the method's own.
    common: whether the other tasks train pools for it; else it is trained alone, on what the base gives. soup: runs of
    the late tenant, each with a seed of its own, whose pools' mean it is: at no more bytes."""

    method: str
    options: dict[str, Any]
    codec: Any
    common: bool = True
    together: dict[str, Any] = field(default_factory=dict)
    late: dict[str, Any] = field(default_factory=dict)
    soup: int = 1


def small(codec: str) -> dict[str, str]:
    """The head keeps bfloat16."""
    return {"head.*|head": "bfloat16", "*": codec}


LORA = Candidate("lora", {"rank": 16}, "bfloat16", common=False, late={"lr": 1e-3})
TWO = {"epochs": 2}
CANDIDATES = {
    "xs-common-r12-int4": Candidate("lora-xs", {"rank": 12, "factors": "common"}, "int4", together=TWO),
    "xs-common-r16-int4": Candidate("lora-xs", {"rank": 16, "factors": "common"}, "int4", together=TWO),
    "xs-common-r16-int8": Candidate("lora-xs", {"rank": 16, "factors": "common"}, "int8", together=TWO),
    "xs-common-r16-int8-soup3": Candidate("lora-xs", {"rank": 16, "factors": "common"}, "int8", together=TWO, soup=3),
    "xs-common-r24-int4": Candidate("lora-xs", {"rank": 24, "factors": "common"}, "int4", together=TWO),
    "xs-common-r48-int8": Candidate(
        "lora-xs", {"rank": 48, "factors": "common"}, "int8", together=TWO, late={"lr": 1e-3}
    ),
    "xs-base-r16-int8": Candidate("lora-xs", {"rank": 16}, "int8", common=False),
    "lotr-r16-int8": Candidate("lotr", {"rank": 16}, "int8", together=TWO),
    "mtlora-r16-own3-int8": Candidate("mtlora", {"rank": 16, "own": 3}, "int8", together=TWO),
    "mos-matrix-r16-int8": Candidate("mos", {"rank": 16, "budget": 2, "core": "matrix"}, "int8", together=TWO),
    "vb-lora-compact": Candidate("vb-lora", {"rank": 4, "compact": True}, "bfloat16", together=TWO),
}


def rows(folder: Path, task: str) -> tuple[list[dict], ...]:
    return tuple(read(folder / f"{task}.{part}.tsv") for part in ("train", "dev", "test"))


def own_bytes(path: Path, tenant: cw.Tenant) -> tuple[int, int]:
    """(bytes of the tenant's own tensors in its file without the head's, bytes of the head's)."""
    order = native.layout(tenant.plan)
    of = tenant.common.pools if tenant.common is not None else {}
    body = head = 0
    with safe_open(path, "pt") as f:
        for key in f.keys():
            names = order.get(key, [key])
            size = f.get_tensor(key).nbytes
            if names[0].startswith("head"):
                head += size
            elif names[0] not in of:
                body += size
    return body, head


def train_common(host: cw.Host, c: Candidate, held: str, seed: int, folder: Path, kept: Path) -> None:
    """The frozen common on the host, and its tenants' files in `kept`; from there when it was trained before."""
    others = [t for t in TASKS if t != held]
    paths = {t: kept / f"{t}.safetensors" for t in others}
    if not all(p.exists() for p in paths.values()):
        _, *unseen = rows(folder, held)
        kept_out = [r for part in unseen for r in part]
        tenants = {
            t: Data(rows=without(train, kept_out), dev=without(dev, kept_out))
            for t in others for train, dev, _ in [rows(folder, t)]
        }  # fmt: skip
        adapt_together(host, tenants, method=c.method, options=c.options, common="tasks", seed=seed, **c.together)
        kept.mkdir(parents=True, exist_ok=True)
        for t, path in paths.items():
            host.save(t, path)
        for t in others:
            host.remove(t)
    for t in others:
        host.load(t, paths[t])  # frozen, as every common that is loaded
    assert host.common("tasks").frozen


def kept_at(cache: Path, what: Candidate | dict[str, Any], method: str, task: str, seed: int, folder: Path) -> Path:
    """Where a cell, or the common that it starts from, is kept: known by all that decides what comes out."""
    about = asdict(what) if isinstance(what, Candidate) else what
    about = {k: v for k, v in about.items() if (k, v) != ("soup", 1)}
    if about.get("common", True):
        about = {**about, "rows": "without the held-out task's"}
    text = json.dumps([about, "slices" if folder == DATA else folder.name], sort_keys=True)
    return cache / f"{method}-{task}-{seed}-{hashlib.blake2b(text.encode(), digest_size=5).hexdigest()}"


def cell(c: Candidate, task: str, seed: int, folder: Path, cache: Path, make: bool = True) -> dict[str, Any] | None:
    """One candidate on one held-out task with one seed; None where it is not there and not to be made."""
    path = kept_at(cache, c, c.method, task, seed, folder).with_suffix(".json")
    if path.exists():
        return json.loads(path.read_text())
    if not make:
        return None
    host = open_host(minilm_folder())
    if c.common:
        shared = {"method": c.method, "options": c.options, "together": c.together}
        train_common(host, c, task, seed, folder, kept_at(cache, shared, c.method, task, seed, folder))
    train, dev, test = rows(folder, task)
    sum_of: dict[str, torch.Tensor] = {}
    for k in range(c.soup):
        if task in host:
            host.remove(task)
        late = adapt(
            host, task, train, method=c.method, options=c.options, common="tasks" if c.common else None, dev_rows=dev,
            seed=seed + 1000 * k, **c.late,
        )  # fmt: skip
        for n, p in late.tenant.named_parameters():
            sum_of[n] = sum_of.get(n, 0) + p.detach()
    with torch.no_grad():
        for n, p in late.tenant.named_parameters():
            p.copy_(sum_of[n] / c.soup)
    settle(late.tenant, coding.of_its_own(late.tenant.plan, native.layout(late.tenant.plan), c.codec))
    out = {
        "accuracy": 100 * evaluate(host, task, test)["accuracy"],
        "dev": 100 * evaluate(host, task, dev)["accuracy"],
        "seconds": round(late.seconds, 1),
    }
    cache.mkdir(parents=True, exist_ok=True)
    atomic.write(path, json.dumps(out).encode())
    return out


def sizes(c: Candidate, task: str, folder: Path) -> dict[str, int]:
    """Bytes of a late tenant: of its file's own tensors, of the head's, of all that it adds to a store in which its
    common's other tenants are; and of the common. They do not depend on what was trained."""
    host, common = open_host(minilm_folder()), "tasks" if c.common else None
    for t in [*(t for t in TASKS if t != task and c.common), task]:
        labels = sorted({row["label"] for row in rows(folder, t)[0]})
        tenant = host.add(t, c.method, labels=labels, common=common, **c.options)
        with torch.no_grad():
            for p in tenant.parameters():  # equal zeros would be stored once
                p.copy_(torch.randn(p.shape))
    codecs = {t: coding.of_its_own(host[t].plan, native.layout(host[t].plan), c.codec) for t in host}
    with tempfile.TemporaryDirectory() as tmp:
        body, head = own_bytes(host.save(task, Path(tmp) / "t.safetensors", codec=codecs[task]), tenant)
        commons = cw.Commons(Path(tmp) / "store")
        for t in host:
            commons.publish(host, t, codec=codecs[t])
        of_common = host.common("tasks").nbytes if c.common else 0
        return {"body": body, "head": head, "store": commons.show(task).marginal_bytes, "common": of_common}


def summary(name: str, ours: dict[tuple[str, int], dict], lora: dict[tuple[str, int], dict]) -> dict[str, Any]:
    """One candidate against LoRA on the cells that both have. Bytes: means over the tasks, whose heads differ."""
    both = sorted(ours.keys() & lora.keys())
    seeds = sorted({s for _, s in both})
    by_seed = [statistics.mean(ours[k]["accuracy"] - lora[k]["accuracy"] for k in both if k[1] == s) for s in seeds]

    def mean(side: dict, *what: str) -> float:
        return statistics.mean(sum(side[k][w] for w in what) for k in both)

    body = mean(ours, "body")
    target = -0.5 if body <= mean(lora, "body") / 100 else 0.0 if body <= mean(lora, "body") / 8 else None
    return {
        "what": f"late tenant, {name}, {body / 1000:.1f} kB, 1/{mean(lora, 'body') / body:.0f} of LoRA r16's, "
        f"{len(both)} of {len(TASKS) * len(SEEDS)} runs (task, seed)",
        "unit": "points",
        "target": target,
        "difference": round(statistics.mean(by_seed), 2),
        "ours": round(mean(ours, "accuracy"), 2),
        "theirs": round(mean(lora, "accuracy"), 2),
        "spread": [round(min(by_seed), 2), round(max(by_seed), 2)],
        "seeds": len(seeds),
        "bytes": {
            "ours": round(body), "theirs": round(mean(lora, "body")),
            "ours with head": round(mean(ours, "body", "head")), "theirs with head": round(mean(lora, "body", "head")),
            "ours in the store": round(mean(ours, "store")), "theirs in the store": round(mean(lora, "store")),
            "common": round(mean(ours, "common")),
        },
        "by task": {
            t: round(statistics.mean(ours[k]["accuracy"] - lora[k]["accuracy"] for k in both if k[0] == t), 2)
            for t in TASKS if any(k[0] == t for k in both)
        },
    }  # fmt: skip


def main(args: Sequence[str] = ()) -> list[dict[str, Any]]:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.commons")
    parser.add_argument("candidates", nargs="*", default=[], metavar="CANDIDATE", help=", ".join(CANDIDATES))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=TASKS)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument("--table", action="store_true")
    asked = parser.parse_args(list(args))
    if strange := set(asked.candidates) - {*CANDIDATES, "lora"}:
        parser.error(f"unknown candidate {min(strange)}; there are lora, {', '.join(CANDIDATES)}")
    table: dict[str, dict[tuple[str, int], dict]] = {}
    bytes_of: dict[tuple[str, str], dict[str, int]] = {}
    for name in dict.fromkeys(["lora", *(asked.candidates or CANDIDATES)]):
        c = LORA if name == "lora" else CANDIDATES[name]
        for seed in asked.seeds:
            for task in asked.tasks:
                found = cell(c, task, seed, asked.data, asked.cache, make=not asked.table)
                if found is not None:
                    if (name, task) not in bytes_of:
                        bytes_of[name, task] = sizes(c, task, asked.data)
                    found |= bytes_of[name, task]
                    table.setdefault(name, {})[task, seed] = found
                    print(name, task, seed, found, flush=True)
    out = [
        summary(n, cells, table["lora"])
        for n, cells in table.items()
        if n != "lora" and cells.keys() & table.get("lora", {})
    ]
    out.sort(key=lambda r: r["bytes"]["ours"])
    if not asked.candidates and len(asked.seeds) == len(SEEDS):
        name = "commons" if asked.data == DATA else "commons_whole"
        out = with_earlier(out, RESULTS / f"{name}.json")
        store(name, out)
    return out


def with_earlier(rows: list[dict[str, Any]], path: Path) -> list[dict[str, Any]]:
    """The rows, and those of a results file whose candidates the cache does not hold any more, with their machine."""
    mine = {candidate(r) for r in rows}
    held = json.loads(path.read_text()) if path.exists() else {"rows": [], "machine": {}}
    earlier = [{"machine": held["machine"], **r} for r in held["rows"] if candidate(r) not in mine]
    return sorted([*rows, *earlier], key=lambda r: r["bytes"]["ours"])


def candidate(row: dict[str, Any]) -> str:
    """The name that `summary` put into a row."""
    return row["what"].split(", ")[1]


if __name__ == "__main__":
    import sys

    for row in main(sys.argv[1:]):
        print(json.dumps(row, indent=1))
