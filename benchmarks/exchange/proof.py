"""Five sentence tasks, 16 clients, Dirichlet 0.3: accuracy against what a client sends and is sent, for every method.

A run is kept as soon as it is done, and none is done twice: `python -m benchmarks.exchange proof` goes on.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from commonweight.adapt import adapt, evaluate, open_host, read
from commonweight.exchange import simulate
from commonweight.formats import atomic

from ..commons import CACHE, CANDIDATES, kept_at, train_common
from ..harness import machine
from ..shapes import minilm_folder

ROOT = Path(__file__).parents[2]
DATA, KEPT = ROOT / "demo" / "data", ROOT / "docs" / "results" / "exchange.json"
TASKS = ("trec", "sst2", "sst5", "mr", "cr")
SEEDS = (0, 1, 2)
HOW = {"clients": 16, "rounds": 8, "split": "dirichlet:0.3", "batch_size": 8, "eval_every": 8}
CENTRAL = "central"
FIRST = 4  # sides that the target compares


class Side(NamedTuple):
    """method, its options, and what differs of the recipe. common: clients read the factors of a common that the other
    four tasks have trained, less the rows that are among this one's test rows; all have it before, as the base."""

    method: str
    options: dict[str, Any]
    recipe: dict[str, Any] = {}  # noqa: RUF012
    common: bool = False


def in_bits(rank: int, common: bool = False, up: str = "int8", **recipe: Any) -> Side:
    factors = {"factors": "common"} if common else {}
    return Side("coded", {"adapter": "lora-xs", "rank": rank, "codec": up, "down": "int8", **factors}, recipe, common)


SIDES = {  # the first ones are the comparison of the target; every method follows
    "fedavg, LoRA r16": Side("fedavg", {"rank": 16}),
    "fed-sb r16, 8 bits both ways, lr 1e-2": in_bits(16, lr=1e-2),
    "lora-xs r16 of a common, 8 bits both ways, lr 5e-3": in_bits(16, common=True, lr=5e-3),
    "lora-xs r16 of a common, 4 bits up and 8 down, lr 5e-3": in_bits(16, common=True, up="int4", lr=5e-3),
    CENTRAL: Side("", {"rank": 16}),
    "fed-sb r8, lr 1e-2": Side("fed-sb", {"rank": 8}, {"lr": 1e-2}),
    "ffa-lora r16": Side("ffa-lora", {"rank": 16}),
    "frl r16": Side("frl", {"rank": 16}),
    "fish-mask": Side("fish-mask", {}),
    "uni-lora": Side("fedavg", {"adapter": "uni-lora", "dim": 1024}),
    "coded int4, LoRA r16": Side("coded", {"rank": 16, "codec": "int4"}),
    "coded l-greco, LoRA r16": Side("coded", {"rank": 16, "codec": "l-greco"}),
    "diloco, 4 bits": Side("diloco", {"rank": 16, "bits": 4}),
    "submodel": Side("submodel", {"rank": 16}),
    "legend": Side("legend", {"rank": 16}),
    "fedpara": Side("fedpara", {}),
    "pfedpara": Side("pfedpara", {}),
    "fedcac": Side("fedcac", {"rank": 16}),
    "flag": Side("flag", {"rank": 16}),
    "median": Side("median", {"rank": 16}),
    "trimmed-mean": Side("trimmed-mean", {"rank": 16}),
    "merged": Side("merged", {"rank": 16}),
    "ferret": Side("ferret", {}),
    "fedkseed": Side("fedkseed", {}),
    "fedkseed-pro": Side("fedkseed-pro", {}),
    "mezo": Side("mezo", {}),
    "one-byte": Side("one-byte", {}),
}
TRIED = {  # rates, ranks and batches on the way to them: on some tasks, run where --only names them
    "lora-xs r16 of a common, 8 bits both ways, lr 1e-2": in_bits(16, common=True, lr=1e-2),
    "fed-sb r16, 8 bits both ways, lr 5e-3": in_bits(16, lr=5e-3),
    "fed-sb r16, 8 bits both ways, lr 5e-3, batches of 4": in_bits(16, lr=5e-3, batch_size=4),
    "fed-sb r8, 8 bits both ways, lr 1e-2": in_bits(8, lr=1e-2),
    "fed-sb r16, 8 bits both ways, lr 1e-2, batches of 4": in_bits(16, lr=1e-2, batch_size=4),
    "fed-sb r8, 8 bits both ways, lr 3e-2": in_bits(8, lr=3e-2),
    "fed-sb r4, lr 1e-2": Side("fed-sb", {"rank": 4}, {"lr": 1e-2}),
    "fed-sb r6, lr 1e-2": Side("fed-sb", {"rank": 6}, {"lr": 1e-2}),
}


def cells(only: str = "") -> Iterator[tuple[str, str, str, int]]:
    """(key, side, task, seed): the target's sides, a seed after the other on all tasks, then the rest alike; what has
    `only` in its key."""
    return (c for c in _cells(list(TRIED) if only else []) if only in c[0])


def _cells(tried: list[str]) -> Iterator[tuple[str, str, str, int]]:
    sides = list(SIDES)
    for some in (sides[:FIRST], sides[FIRST:], tried):
        for seed in SEEDS:
            for task in TASKS:
                for side in some:
                    yield f"{side} | {task} | {seed}", side, task, seed


def kept() -> dict[str, Any]:
    return json.loads(KEPT.read_text("utf-8")) if KEPT.exists() else {"machine": machine(), "how": HOW, "runs": {}}


def keep(found: dict[str, Any]) -> None:
    """A line for each run."""
    runs = ",\n".join(f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in sorted(found["runs"].items()))
    found |= {"tasks": TASKS, "seeds": SEEDS, "sides": list(SIDES), "tried": list(TRIED)}
    head = json.dumps({**found, "runs": {}}, indent=1).replace('"runs": {}', f'"runs": {{\n{runs}\n }}')
    atomic.write(KEPT, head.encode() + b"\n")


def measured(side: str, task: str, seed: int, host: Any) -> dict[str, Any]:
    """accuracy in percent; up and down: bytes of one client and run, the mean of all, frames and setup counted."""
    train, test = (read(DATA / f"{task}.{part}.tsv") for part in ("train", "test"))
    s = (SIDES | TRIED)[side]
    if s.common:
        host = beside_a_common(task)
    began = time.process_time()
    if side == CENTRAL:
        adapt(host, "t", train, method="lora", options=s.options, seed=seed, epochs=HOW["rounds"])
        out: dict[str, Any] = {"accuracy": round(100 * evaluate(host, "t", test)["accuracy"], 2)}
        host.remove("t")
    else:
        run = simulate(
            host, train, method=s.method, options=s.options, eval_rows=test, seed=seed, name="t",
            common="tasks" if s.common else None, **{**HOW, **s.recipe}
        )  # fmt: skip
        last = run.curve[-1]
        out = {"accuracy": round(100 * last["accuracy"], 2), "numbers": run.setting.count}
        out |= {"up": round(run.up / HOW["clients"]), "down": round(run.down / HOW["clients"])}
        host.remove("t")
    return out | {"cpu_s": round(time.process_time() - began, 1)}


def beside_a_common(held: str) -> Any:
    """A host with the frozen common of the other tasks, seed 0, from the cache of `benchmarks.commons` or into it."""
    c, host = CANDIDATES["xs-common-r16-int8"], open_host(minilm_folder())
    shared = {"method": c.method, "options": c.options, "together": c.together}
    train_common(host, c, held, 0, DATA, kept_at(CACHE, shared, c.method, held, 0, DATA))
    return host


def bytes_row() -> list[dict[str, Any]]:
    """The least that a client sends and is sent within a point of FedAvg-LoRA's mean accuracy, over its bytes; of each
    side the tasks and seeds that both have. [] where there are none."""
    runs, (base, *others) = kept()["runs"], list(SIDES)[:FIRST]
    cells = [(t, s) for s in SEEDS for t in TASKS if f"{base} | {t} | {s}" in runs]
    have = {x: [(t, s) for t, s in cells if f"{x} | {t} | {s}" in runs] for x in others}
    others = [x for x in others if have[x]]
    if not others:
        return []

    def of(side: str, what: str, cells: list[tuple[str, int]]) -> list[float]:
        return [runs[f"{side} | {t} | {s}"][what] for t, s in cells]

    def spent(side: str, cells: list[tuple[str, int]]) -> float:
        return statistics.mean(of(side, "up", cells)) + statistics.mean(of(side, "down", cells))

    less = {x: [b - a for a, b in zip(of(x, "accuracy", have[x]), of(base, "accuracy", have[x]))] for x in others}
    behind = {x: statistics.mean(v) for x, v in less.items()}
    near = [x for x in others if behind[x] <= 1.0]
    best = min(near or others, key=lambda x: spent(x, have[x]))
    whole = spent(base, have[best])
    parts = [(runs[k]["up"] + runs[k]["down"]) / whole for t, s in have[best] for k in [f"{best} | {t} | {s}"]]
    return [{
        "what": f"bytes of a client and run within 1 point of FedAvg-LoRA r16, {len(have[best])} of "
        f"{len(TASKS) * len(SEEDS)} runs (task, seed): {best} ({abs(behind[best]):.2f} points "
        f"{'behind' if behind[best] > 0 else 'ahead'}{'' if near else ': none is within'})"
        + ("; its factors, 663,552 numbers, are there before" if SIDES[best].common else ""),
        "unit": "of its bytes", "target": 0.005, "within": bool(near),
        "ratio": round(spent(best, have[best]) / whole, 5), "spread": [round(min(parts), 5), round(max(parts), 5)],
        "behind": {x: round(v, 2) for x, v in behind.items()}, "runs": {x: len(v) for x, v in have.items()},
        "bytes": {base: round(whole), best: round(spent(best, have[best]))},
    }]  # fmt: skip


def main(minutes: float, only: str = "") -> None:
    until, host = time.monotonic() + 60 * minutes, open_host(minilm_folder())
    for key, side, task, seed in cells(only):
        if key in kept()["runs"]:
            continue
        if time.monotonic() > until:
            return
        result = measured(side, task, seed, host)
        found = kept()
        found["runs"][key] = result
        keep(found)
        print(key, result, flush=True)
