"""What both sides of an app read from its ``pyproject.toml``: flat numbers and words, as Flower hands them out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from ...adapt.base import open_host
from ...adapt.rows import Row, read
from ...core import CommonweightError
from ..local import Local, Rounds
from ..setting import Prepared, make_task, numbers, ready

READING = ("text-column", "label-column", "prompt-column", "completion-column")
OWN = (
    "model", "rows", "eval", "out", "run", "method", "options", "task", "labels", "sites", "dtype", "wait", "timeout",
    "no-header", "floats", *READING,
)  # fmt: skip


class Served(NamedTuple):
    """prepared: the run, with its global tenant. config: the app's."""

    prepared: Prepared
    config: dict[str, Any]


def recipe(config: Mapping[str, Any]) -> tuple[Rounds, Local]:
    """Rounds and local steps. Raises: CommonweightError for a name that is neither these nor the app's."""
    return numbers({k.replace("-", "_"): v for k, v in config.items() if k not in OWN})


def opened(config: Mapping[str, Any]) -> Served:
    """Opens the base and adds the global tenant: the same on every machine, from the app's config alone.

    Raises: CommonweightError.
    """
    config = dict(config)
    if lacks := [k for k in ("model", "method", "run", "clients") if k not in config]:
        raise CommonweightError(f"the app's config has no {', '.join(lacks)}; write it with commonweight exchange app")
    plan, local = recipe(config)
    task = config.get("task", "classify")
    host = open_host(config["model"], task, dtype=config.get("dtype", "auto"))
    labels = json.loads(config["labels"]) if config.get("labels") else None
    reading = {k.replace("-", "_"): config.get(k) or None for k in READING}
    doing = make_task(host, task, [], labels, None, local, reading, "the app")
    prepared = ready(
        host, doing, config["method"], json.loads(config.get("options") or "{}"), plan, local, clients=plan.clients,
        sites=config.get("sites") or None, run=config["run"],
    )  # fmt: skip
    if config.get("floats") and (why := not_floats(prepared)):
        raise CommonweightError(f"floats, for Flower's mods of differential privacy: {why}")
    return Served(prepared, config)


def not_floats(p: Prepared) -> str:
    """Why messages are no pools that a mod could clip and add noise to; empty: they are."""
    if p.setting.privacy:
        return "the server itself clips and adds noise, by dp_clip; use one of both"
    if p.setting.coding:
        return "codecs send bytes, which no mod can add noise to; leave the codec out, or let the server do it: dp_clip"
    name, noise = p.method.name, p.method.noise
    return f"{name} cannot: {noise}; fedavg, ffa-lora and fed-sb can" if noise else ""


def rows_of(config: Mapping[str, Any], path: str, split: str = "train") -> list[Row]:
    """Rows of a file, with the columns that the app names."""
    asked = [config[k] for k in READING if config.get(k)]
    return read(path, asked, split=split, no_header=bool(config.get("no-header")), say=lambda _: None)
