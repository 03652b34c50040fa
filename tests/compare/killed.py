"""Runs one comparison again and again, killing it at different moments; prints what was trained each time, as JSON.

    python -m tests.compare.killed FOLDER MODEL TRAIN...

One process imports everything once and forks a child for each attempt.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
from pathlib import Path

from commonweight.compare import Cache, Comparison, compare, find, workers
from commonweight.compare import run as runs
from commonweight.formats import atomic

# What the attempt dies at: (what, the how manieth time). The last one lives.
MOMENTS = (("before a run", 2), ("in a run", 1), ("before a record has its name", 2), ("after a record", 2), ("-", 0))


def die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def attempt(folder: Path, model: str, train: list[str], what: str, n: int) -> None:
    """One comparison in this process, which notes every training that it begins and every one that it finished."""
    log, done, old, write = folder / "log", [0, 0], runs._trained, atomic.os.replace

    def note(text: str) -> None:
        with open(log, "a") as f:
            f.write(text + "\n")

    def trained(host, job, watch):
        done[0] += 1
        if (what, n) == ("before a run", done[0]):
            die()
        note(f"begun {job.key(host)}")
        return old(host, job, die if (what, n) == ("in a run", done[0]) else watch)

    def replace(a, b):
        done[1] += 1
        if (what, n) == ("before a record has its name", done[1]):
            die()
        write(a, b)
        note(f"kept {Path(b).stem}")
        if (what, n) == ("after a record", done[1]):
            die()

    runs._trained, atomic.os.replace = trained, replace
    c = Comparison(
        model, find(train), ("probe", "bitfit"), (), 2, 2, recipe={"epochs": 2, "batch_size": 12}, dtype="float32"
    )
    with workers(1) as run:
        outcome = compare(c, run, Cache(folder / "cache"), say=lambda _: None)
    note(f"ended {len(outcome.runs)}")


def main(folder: Path, model: str, train: list[str]) -> None:
    codes = []
    gc.freeze()  # accelerate looks for garbage in every run: not in what was imported
    for what, n in MOMENTS:
        child = os.fork()
        if not child:
            attempt(folder, model, train, what, n)
            os._exit(0)
        codes.append(os.waitpid(child, 0)[1])
    print(json.dumps({"codes": codes, "log": (folder / "log").read_text().splitlines()}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:])
