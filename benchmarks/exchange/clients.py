"""Clients a second: `simulate` beside Flower's own simulation with Ray, of the same app, in turn.

Fed-SB r4, a row and a step for each client. Of both sides the second round and later ones: the first opens bases. One
thread here, with OMP_NUM_THREADS=1; an actor of Ray for every core there. --flower: the Python of an environment that
has what this library needs, flwr[simulation] and ray.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
from itertools import pairwise
from pathlib import Path

from commonweight.adapt import open_host, read
from commonweight.exchange import simulate
from commonweight.exchange.flower import app

from . import keep
from .bases import NAMES, folder
from .flower import simulated
from .proof import DATA

HOW = {"rounds": 3, "steps": 1, "batch_size": 8, "lr": 1e-2, "seed": 0}


def ours(base: Path, rows: list, clients: int) -> list[float]:
    """Seconds of each round but the first."""
    seconds: list[float] = []
    simulate(
        open_host(base), rows, method="fed-sb", options={"rank": 4}, clients=clients,
        progress=lambda p: seconds.append(p.seconds), **HOW,
    )  # fmt: skip
    return seconds[1:]


def theirs(base: Path, at: Path, clients: int, python: str) -> list[float]:
    made = app(
        str(base), at / "app", method="fed-sb", options={"rank": 4}, rows=str(at / "rows.jsonl"), clients=clients,
        wait=1200.0, timeout=3600.0, overwrite=True, **HOW,
    )  # fmt: skip
    ends = simulated(made, clients, at / "home", python, os.cpu_count() or 1)
    return [b - a for a, b in pairwise(ends)]


def main(python: str, clients: int = 1000, times: int = 2, bases: tuple[str, ...] = ("small", "minilm")) -> list[dict]:
    rows = read(DATA / "trec.train.tsv")
    rows, out = [rows[i % len(rows)] for i in range(clients)], []
    for name in bases:
        found: dict[str, list[float]] = {"ours": [], "theirs": []}
        for i in range(times):
            with tempfile.TemporaryDirectory() as where:
                at = Path(where)
                base = folder(name, at)
                (at / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
                for side in ("ours", "theirs") if i % 2 == 0 else ("theirs", "ours"):
                    found[side] += ours(base, rows, clients) if side == "ours" else theirs(base, at, clients, python)
                    print(name, side, [round(s, 2) for s in found[side]], flush=True)
        ratios = sorted(t / o for o, t in zip(found["ours"], found["theirs"]))
        out += keep({
            "kind": f"clients, {name}",
            "what": f"clients a second, {clients:,} of a round, Fed-SB r4, {NAMES[name]}, a row and a step each: "
            "simulate / Flower's simulation with Ray",
            "unit": "times faster", "target": 10, "ratio": round(statistics.median(ratios), 1),
            "spread": [round(ratios[0], 1), round(ratios[-1], 1)], "rounds": len(ratios),
            **{f"{k}_per_s": round(clients / statistics.median(v), 1) for k, v in found.items()},
        })  # fmt: skip
    return out
