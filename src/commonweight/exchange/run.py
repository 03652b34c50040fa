"""What a run learned: a store of tenants, and one JSON file of curves and counts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..commons import Commons
from ..core import CommonweightError, dump
from ..formats import atomic
from ..host import Host, Tenant
from .checkpoint import Kept
from .privacy import told as told_of_privacy
from .registry import Method, Setting, State
from .setting import Prepared, numbers_of

FILE = "run.json"
KEYS = (
    "method", "paper", "adapter", "adapter_options", "travels", "private", "payload_up", "payload_down", "formula",
    "rounds", "better", "clients",
)  # fmt: skip  # without which a page cannot be written
OF_ONE = {
    "curve": ("round", "clients", "replies", "refused", "up", "down"),
    "clients": ("rows", "rounds", "up", "down", "loss", "metrics"),
}


class Seat(NamedTuple):
    """A client's account. rounds: those it answered. up, down: bytes. loss: of its last round. metrics: of its own
    model on the rows that it held out. setup: whether it was sent what a start from rows made."""

    rows: int = 0
    rounds: int = 0
    up: int = 0
    down: int = 0
    loss: float | None = None
    metrics: Mapping[str, float] = {}
    setup: bool = False


@dataclass
class Run:
    """tenant: the global one, on the host. curve: of every round its clients, replies, refusals, loss, bytes and
    metrics. seats: of every client that was asked. state: the server's. metric: the one that the task goes by."""

    host: Host
    tenant: Tenant
    method: Method
    setting: Setting
    curve: list[dict[str, Any]]
    seats: dict[int, Seat]
    state: State
    kept: Kept
    folder: Path | None = None
    metric: str = "accuracy"

    @property
    def up(self) -> int:
        """Bytes that all clients sent."""
        return sum(r["up"] for r in self.curve)

    @property
    def down(self) -> int:
        """Bytes that all clients were sent."""
        return sum(r["down"] for r in self.curve)

    def personal(self, client: int) -> Tenant:
        """The global tenant with what a client kept in its place; without private pools, the global tenant itself."""
        if not self.setting.private:
            return self.tenant
        mine = self.kept.of(client)
        with torch.no_grad():
            for n in self.setting.private:
                if n in mine:
                    self.tenant.pools[n].copy_(mine[n])
        return self.tenant

    def client(self, client: int, name: str | None = None) -> Tenant:
        """A tenant of its own on the host for what a client has: the server's pools and those that it kept."""
        like = self.tenant
        new = self.host.add(
            name or f"client-{client}", like.config, sites=lambda n, _: n in {s.name for s in like.sites},
            seed=like.plan.seed, labels=like.labels, common=None if like.common is None else like.common.name,
        )  # fmt: skip
        mine = self.kept.of(client)
        with torch.no_grad():
            for n, p in new.pools.items():
                if like.plan.pools[n].save:
                    p.copy_(mine[n] if n in mine and n in self.setting.private else like.pools[n])
        return new


def free(folder: Path, *, resume: bool, overwrite: bool) -> None:
    """Writes nothing. Raises: CommonweightError where something lies there that is neither resumed nor replaced."""
    if folder.is_file():
        raise CommonweightError(f"--out {folder} is a file; wanted a folder")
    atomic.free(folder / FILE, "--out", overwrite=True)
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    if not overwrite and not resume:
        raise CommonweightError(f"--out {folder}: not empty; --resume goes on with a run, --overwrite replaces it")
    if not (folder / FILE).is_file() and not (folder / "state").is_dir():
        raise CommonweightError(f"--out {folder}: not empty, and no run of exchange; choose another folder")


def open_out(folder: Path, *, resume: bool, overwrite: bool) -> Path:
    """The folder of a run. Raises: CommonweightError where one lies there that is neither resumed nor replaced."""
    free(folder, resume=resume, overwrite=overwrite)
    if overwrite and not resume:
        for part in ("state", "store"):
            shutil.rmtree(folder / part, ignore_errors=True)
        (folder / FILE).unlink(missing_ok=True)
    atomic.make_folder(folder)
    return folder


def to_json(p: Prepared, curve: Sequence[Mapping[str, Any]], seats: Mapping[int, Seat]) -> dict[str, Any]:
    """Everything that is known of a run but its numbers."""
    up, down = p.method.nbytes(p.setting, 0, 0)
    config = dump(p.setting.config)
    config.pop("is")
    adapter, options = p.method.adapter(p.setting.config)
    rounds = max((s.rounds for s in seats.values()), default=0)
    coding = {} if p.setting.coding is None else {"coding": asdict(p.setting.coding)}
    private = {"privacy": told_of_privacy(p.setting.privacy, rounds)} if p.setting.privacy else {}
    return {
        "format": 1, "method": p.method.name, "paper": p.method.paper, "options": config, "adapter": adapter,
        "adapter_options": options, "base": p.setting.base, "task": type(p.task).__name__.lower(),
        "travels": p.setting.count, "private": sum(p.setting.plan.pools[n].numel for n in p.setting.private),
        "payload_up": up, "payload_down": down, "setup": sum(v.nbytes for v in p.setup.values()),
        "formula": p.method.formula, **coding, **private, "rounds": numbers_of(p.plan),
        "local": numbers_of(p.local), "better": list(p.task.better), "curve": list(curve),
        "clients": {str(c): {**s._asdict(), "metrics": dict(s.metrics)} for c, s in sorted(seats.items())},
    }  # fmt: skip


def write(folder: Path, p: Prepared, curve: Sequence[Mapping[str, Any]], seats: Mapping[int, Seat]) -> Path:
    """``run.json``, after every round: a report can be made while a run goes on."""
    text = json.dumps(to_json(p, curve, seats), ensure_ascii=False, indent=1)
    return atomic.write(folder / FILE, (text + "\n").encode())


def read(folder: Path) -> dict[str, Any]:
    """A run's JSON. Raises: CommonweightError where there is none, or one that is no run's."""
    path = folder / FILE
    if not path.is_file():
        raise CommonweightError(f"{folder}: no {FILE} there; wanted the folder that exchange simulate wrote, --out")
    try:
        found = json.loads(path.read_text("utf-8"))
        if not isinstance(found, dict) or not isinstance(found.get("curve"), list):
            raise ValueError("no run")
        if lacks := [k for k in KEYS if k not in found]:
            raise ValueError(f"it says nothing of {', '.join(lacks[:3])}")
        if odd := [k for k in ("rounds", "clients") if not isinstance(found[k], dict)]:
            raise ValueError(f"{odd[0]} has no names and values")
        for what, keys in OF_ONE.items():
            each = found[what].values() if isinstance(found[what], dict) else found[what]
            if odd := [one for one in each if not isinstance(one, dict) or not {*keys} <= one.keys()]:
                raise ValueError(f"one of its {what} is {str(odd[0])[:50]}; wanted one with {', '.join(keys)}")
        return found
    except ValueError as e:
        raise CommonweightError(f"{path}: cannot be read as a run ({e})") from e


def finish(folder: Path, run: Run) -> None:
    """The tenants into the store: the global one, and of clients that kept pools one each."""
    store = Commons(folder / "store")
    last = run.curve[-1] if run.curve else {}
    metrics = {k: v for k, v in last.items() if k in ("accuracy", "macro_f1", "loss", "bits_per_byte")}
    store.publish(run.host, run.tenant.name, metrics=metrics or None)
    if run.setting.private:
        for c in sorted(run.kept.last):
            new = run.client(c)
            try:
                store.publish(run.host, new.name, parents=(run.tenant.name,))
            finally:
                run.host.remove(new.name)
