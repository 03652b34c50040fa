"""Streams that are small enough for a test."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from commonweight.adapt import Data, open_host
from commonweight.lifelong import available, learn
from tests.adapt import tiny

METHODS = sorted(available())
LABELS = {"first": ("law", "sport", "food"), "second": ("one", "two"), "third": ("one", "two")}
SMALL: dict[str, dict[str, Any]] = {
    "coda-prompt": {"components": 2, "tokens": 2},
    "conpet": {"rank": 2, "rows": 4, "batches": 1},
    "coso": {"inside": 4, "sketch": 8},
    "dualprompt": {"tokens": 2, "general": 1, "expert": 1},
    "ewc": {"rank": 2, "rows": 4},
    "inflora": {"rank": 2, "rows": 8},
    "l2p": {"prompts": 4, "top": 2, "tokens": 2},
    "mocl-p": {"tokens": 2},
    "joint": {"rank": 2, "every": True},
    "k-fpf": {"rank": 2, "rows": 4, "epochs": 1},
    "mos": {"size": 2},
    "replay": {"rank": 2, "rows": 4},
    "share": {"k": 4, "rank": 2},
    "spu": {"rows": 6, "replay": 2},
}
RECIPE: dict[str, Any] = {"epochs": 1, "batch_size": 6, "lr": 5e-3, "checkpoint_every": 1}


def options(method: str) -> dict[str, Any]:
    return SMALL.get(method, {"rank": 2})


def tasks(n: int = 2, rows: int = 12) -> dict[str, Data]:
    return {name: Data(rows=tiny.rows(rows, i, LABELS[name])) for i, name in enumerate([*LABELS][:n])}


def evals(n: int = 2, rows: int = 6) -> dict[str, list[dict[str, str]]]:
    return {name: tiny.rows(rows, 9 + i, LABELS[name]) for i, name in enumerate([*LABELS][:n])}


def stream(model: Path, store: Path, method: str = "sequential", n: int = 2, host: Any = None, **more: Any):
    host = host or open_host(model, "classify", dtype="float32")
    given = {"options": options(method), **RECIPE, **more}
    return learn(host, tasks(n), store, method=method, **given)


def told(folder: Path) -> dict[str, Any]:
    """A stream's record without what a clock says."""
    found = json.loads((folder / "stream.json").read_text())
    for s in found["stages"]:
        s.pop("seconds")
    return found
