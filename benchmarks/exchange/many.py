"""10,000 clients, three rounds: does it run, and does memory stay flat? Peaks of processes of their own."""

from __future__ import annotations

import json
import statistics
import tempfile
from pathlib import Path

from commonweight.adapt import open_host, read
from commonweight.exchange import simulate

from ..harness import in_fresh_process, resident
from . import keep
from .bases import NAMES, folder
from .clients import HOW
from .proof import DATA


def one(clients: int) -> None:
    """A client has a row; rows come again where there are more clients. Prints a line of JSON."""
    rows = read(DATA / "trec.train.tsv")
    rows = [rows[i % len(rows)] for i in range(clients)]
    seconds: list[float] = []
    with tempfile.TemporaryDirectory() as at:
        run = simulate(
            open_host(folder("small", Path(at))), rows, method="fed-sb", options={"rank": 4}, clients=clients,
            progress=lambda p: seconds.append(p.seconds), **HOW,
        )  # fmt: skip
    told = {"clients": clients, "replies": run.curve[-1]["replies"], "peak_mb": round(resident("VmHWM") / 2**20, 1)}
    print(json.dumps({**told, "per_s": round(clients / statistics.median(seconds[1:]), 1)}))


def main(few: int = 1000, many: int = 10_000) -> list[dict]:
    a, b = (in_fresh_process("benchmarks.exchange", "one", "--clients", str(n)) for n in (few, many))
    ratio = round(b["peak_mb"] / a["peak_mb"], 3)
    return keep({
        "kind": "many",
        "what": f"most memory of a simulation, {many:,} clients / {few:,}, 3 rounds, Fed-SB r4, {NAMES['small']}",
        "unit": "memory", "target": 1.1, "ratio": ratio, "spread": [ratio, ratio], "rounds": 1, "ours_mb": b,
        "theirs_mb": a,
    })  # fmt: skip
