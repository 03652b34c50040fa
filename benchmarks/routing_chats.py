"""Which routing pays on a language model: SmolLM2 on GSM8K's rows as chats, by the loss of answers it has not seen.

One seed: all are measured on the same answers, so that a difference is that of as many pairs. Of each method's own
learning rate and three times it the better on the dev rows counts. Every finished run lies in compare-cache, so that
the command goes on where it stopped; the table is put at the end of docs/results/routing.md.

    python -m benchmarks.routing_chats --smollm2 FOLDER --data FOLDER [--minutes 10] [--budget 8MB]

--smollm2: SmolLM2-135M-Instruct. --data: GSM8K's train.jsonl and test.jsonl lie in its gsm8k.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from commonweight.compare import Cache, Data, parse_budget
from commonweight.compare.job import Job
from commonweight.compare.run import execute, opened
from commonweight.methods import get

from . import routing
from .compare import RESULTS, ROOT
from .harness import store

MIXTURES = ("molora", "mola", "smora", "hydralora", "llava-mole")
TRAIN, DEV, TEST, LENGTH, BATCH = 128, 16, 64, 256, 8
RATES = (1.0, 3.0)  # of the method's own
RECIPE = {"epochs": 1, "batch_size": BATCH, "max_length": LENGTH}


def chats(gsm8k: Path, folder: Path) -> Data:
    """A question and its answer each. GSM8K has no dev rows; they are those behind its first training rows."""
    folder.mkdir(parents=True, exist_ok=True)
    train, test = ((gsm8k / f"{part}.jsonl").read_text("utf-8").splitlines() for part in ("train", "test"))
    parts = {"train": train[:TRAIN], "dev": train[TRAIN : TRAIN + DEV], "test": test[:TEST]}
    files = {}
    for part, lines in parts.items():
        told = [{"user": r["question"], "assistant": r["answer"]} for r in map(json.loads, lines)]
        rows = [{"messages": [{"role": k, "content": v} for k, v in r.items()]} for r in told]
        files[part] = folder / f"gsm8k.{part}.jsonl"
        files[part].write_text("".join(json.dumps(r) + "\n" for r in rows), "utf-8")
    return Data("gsm8k", str(files["train"]), str(files["test"]), str(files["dev"]))


def main(smollm2: Path, data: Path, minutes: float = 10.0, budget: str = "8MB") -> list[dict]:
    smollm2, data = smollm2.resolve(), data.resolve()
    os.chdir(ROOT)
    end, cache = time.monotonic() + 60 * minutes, Cache(ROOT / "compare-cache")
    rows = chats(data / "gsm8k", Path(".cache/routing"))
    host = opened(str(smollm2), "lm", "bfloat16")
    found = routing.rows(host, parse_budget(budget), MIXTURES)
    fits = {str(f): f for r in found for f in (r.fit, r.rival) if f is not None}
    done: dict[str, dict[str, Any]] = {}  # the better record of each
    count = 0
    jobs = [
        (name, Job(str(smollm2), rows, f.method, f.options, 0, times * get(f.method).lr, "lm", RECIPE, "bfloat16",
                   codec=routing.CODEC))
        for times in RATES for name, f in fits.items()
    ]  # fmt: skip
    for name, job in jobs:
        record = cache.get(job.key(host))
        if record is None and time.monotonic() < end:
            record = execute(job, cache)
            print(name, job.lr, record.get("test"), flush=True)
        if record is not None and record["state"] == "done":
            count += 1
            if name not in done or record["dev"]["loss"] < done[name]["dev"]["loss"]:
                done[name] = record
    out = [told(r, found[0].fit, done) for r in found]
    store("routing_chats", out)
    path = RESULTS / "routing.md"
    path.write_text(path.read_text("utf-8").partition(routing.CHATS)[0] + page(out, budget, count, len(jobs)), "utf-8")
    return out


def told(row: routing.Row, lora: Any, done: dict[str, dict[str, Any]]) -> dict[str, Any]:
    name, rival = str(row.fit), row.rival and str(row.rival)

    def over(other: str | None) -> float | None:
        if other is None or other == name or not {name, other} <= done.keys():
            return None
        return round(done[name]["test"]["loss"] - done[other]["test"]["loss"], 4)

    mine = done.get(name)
    return {
        "what": name, "unit": "loss", "target": None, "bytes": row.fit.nbytes, "numbers": row.fit.count,
        "active": row.active, "rival": rival, "lr": mine and mine["lr"],
        "loss": mine and round(mine["test"]["loss"], 4),
        "over equal bytes": over(str(lora)), "over equal active": over(rival),
    }  # fmt: skip


def page(found: Sequence[dict], budget: str, done: int, all_of: int) -> str:
    head = ["method", "numbers", "a token reads", "rate", "loss", "over LoRA of equal bytes"]
    head += ["over LoRA of as many numbers as a token reads"]
    about = (
        f"`python -m benchmarks.routing_chats`: {done} of {all_of} runs are done. SmolLM2-135M-Instruct in bfloat16 on "
        f"GSM8K as chats, {TRAIN} rows once, {BATCH} at a time; the loss of the tokens of {TEST} answers of its test "
        f"rows, less is better. Budget {budget} of bfloat16 pools, one seed; of each method's own learning rate and "
        f"three times it the better on {DEV} dev rows. These are {TRAIN // BATCH} steps: what learns faster is ahead."
    )
    lines = [routing.CHATS, about, "", f"| {' | '.join(head)} |", "| --- |" + " ---: |" * (len(head) - 1)]
    for r in found:
        rate, loss, equal, other = (
            "-" if r[k] is None else f"{r[k]:{form}}"
            for k, form in (("lr", "g"), ("loss", ".4f"), ("over equal bytes", "+.4f"), ("over equal active", "+.4f"))
        )
        other += f" (`{r['rival']}`)" if r["rival"] else ""
        lines.append(f"| `{r['what']}` | {r['numbers']:,} | {r['active']:,} | {rate} | {loss} | {equal} | {other} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--smollm2", type=Path, required=True)
    asked.add_argument("--data", type=Path, required=True)
    asked.add_argument("--minutes", type=float, default=10.0)
    asked.add_argument("--budget", default="8MB")
    for line in main(**vars(asked.parse_args())):
        print(line)
