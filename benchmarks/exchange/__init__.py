"""Exchange, measured: accuracy against bytes, clients a second beside Flower's simulation, ten thousand clients.

python -m benchmarks.exchange proof --minutes 60         runs of sentence tasks; goes on where it stopped
python -m benchmarks.exchange books --books FOLDER       DiLoCo beside synchronous steps, a client for each author
python -m benchmarks.exchange clients --flower PYTHON    beside Flower's simulation; an environment with it and Ray
python -m benchmarks.exchange many                       1,000 and 10,000 clients
python -m benchmarks.exchange killed --flower PYTHON     30 rounds of real processes, of which a third is killed
python -m benchmarks exchange                            all but the first and the last; FLOWER=PYTHON
"""

from __future__ import annotations

import importlib
import os
from typing import Any

from ..harness import machine, store
from ..tables import rows as stored

NAME = "exchange"


def keep(row: dict[str, Any]) -> list[dict[str, Any]]:
    """Into benchmarks/results/exchange.json, in the place of the row of its kind, with what it was measured on."""
    row = {**row, "machine": machine()}
    others = [r for r in stored(NAME) if r["kind"] != row["kind"]]
    store(NAME, sorted([*others, row], key=lambda r: r["kind"]))
    return [row]


def main() -> list[dict[str, Any]]:
    """What is measured beside others, and the row of the runs that are kept."""
    flower = os.environ.get("FLOWER")
    out = importlib.import_module("benchmarks.exchange.many").main()
    if flower:
        out += importlib.import_module("benchmarks.exchange.clients").main(flower)
    for row in importlib.import_module("benchmarks.exchange.proof").bytes_row():
        out += keep({"kind": "bytes", **row})
    return out
