"""Where trained tenants go: one file, a folder of files, or a store. Each is looked at before anything is trained."""

from __future__ import annotations

import glob
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import safetensors

from ..commons import Commons
from ..commons.again import told
from ..core import CommonweightError, build, dump
from ..core.peers import said
from ..formats import atomic, native
from ..host import Host, Tenant
from ..host.files import encode
from ..methods import either
from .checkpoint import Store
from .job import Job, choices
from .recipe import Recipe


@dataclass(frozen=True)
class Written:
    """where: the file, or the store and the version. nbytes: the file's, or those of its pools and its manifest.
    own, common: bytes of its own pools, and of those it shares, as they are stored. marginal: of a store, what would
    leave with the tenant, its manifest included."""

    where: str
    nbytes: int
    own: int
    common: int
    marginal: int | None = None


Metrics = Mapping[str, Mapping[str, Any]]
Codecs = Mapping[str, Any]
Made = dict[str, Written]


class Target(Protocol):
    """checkpoint: the folder of the run's state. report: where its settings, curve and metrics go; None: nowhere.
    notices: what a person should know after `write`."""

    @property
    def checkpoint(self) -> Path: ...

    @property
    def report(self) -> Path | None: ...

    @property
    def notices(self) -> list[str]: ...

    def write(self, host: Host, metrics: Metrics, codecs: Codecs) -> Made: ...


class InFiles:
    """Tenant -> its file; made one after another when all of them are encoded, so that a NaN in one leaves none."""

    def __init__(self, paths: Mapping[str, Path], checkpoint: Path, report: Path):
        self.paths, self.checkpoint, self.report = paths, checkpoint, report
        self.notices: list[str] = []

    def write(self, host: Host, metrics: Metrics, codecs: Codecs) -> Made:
        """Again: the same files with other metrics."""
        data = {n: encode(host.base, host[n], metrics[n], codecs[n]) for n in self.paths}
        for name, path in self.paths.items():
            atomic.write(path, data[name])
        for path in (*self.paths.values(), self.report):
            for torn in path.parent.glob(f".{glob.escape(path.name)}.*"):
                torn.unlink(missing_ok=True)  # what a killed run of this name left
        return {n: Written(str(p), len(data[n]), *sizes(host[n], data[n])) for n, p in self.paths.items()}


class InStore:
    """Into a store, under their names: new versions where these are there already with other content.

    notices: what a person should know about those that were there before."""

    report = None

    def __init__(self, commons: Commons, checkpoint: Path):
        self.commons, self.checkpoint = commons, checkpoint
        self.before = commons.newest()
        self.notices: list[str] = []

    def write(self, host: Host, metrics: Metrics, codecs: Codecs) -> Made:
        """All of them at once: whoever looks sees the whole run or nothing of it. Again: no new versions, but other
        metrics."""
        made = self.commons.publish_all(host, metrics, metrics=metrics, codecs=codecs)
        notices = [told(m.label, m.version, self.before.get(n)) for n, m in made.items()]
        self.notices = self.notices or [n for n in notices if n]
        records = {r.name: r for r in self.commons.list()}
        out = {}
        for n, m in made.items():
            r, shared = records[n], _shared(host[n])
            common = sum(ref.numbers for k, ref in m.pools.items() if k in shared)
            own = sum(ref.numbers for ref in m.pools.values()) - common
            out[n] = Written(f"{self.commons.folder}: {m.label}", r.nbytes, own, common, r.marginal_bytes)
        return out


def sizes(tenant: Tenant, data: bytes) -> tuple[int, int]:
    """(bytes of its own pools, of those of its common) in the bytes of its file."""
    shared = _shared(tenant)
    own = common = 0
    for key, tensor in safetensors.deserialize(data):
        if key in shared:
            common += len(tensor["data"])
        else:
            own += len(tensor["data"])
    return own, common


def _shared(tenant: Tenant) -> set[str]:
    """The tensors of its file that hold pools of its common."""
    if tenant.common is None:
        return set()
    return {key for key, names in native.layout(tenant.plan).items() if names[0] in tenant.common.pools}


def resumes(report: Path, checkpoint: Path, model: str, job: Job) -> bool:
    """Whether files that are there are this run's: it did not end, or they are what it left."""
    if Store(checkpoint).newest() is not None:
        return True
    try:
        told = json.loads(report.read_bytes())
        each = told.get("tenants", {told.get("tenant"): told})
        if told["model"] != model or {*each} != {*job.tenants}:
            return False
        asked = {n: json.loads(json.dumps(choices(job, n))) for n in each}
        same = all(t.get(k) == v for n, t in each.items() for k, v in asked[n].items())
        return same and all(_alike(t["settings"], job, len(each) > 1) for t in each.values())
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return False


def _alike(settings: Mapping[str, Any], job: Job, several: bool) -> bool:
    """Whether settings are of a job's method, options and recipe; what a method that begins from rows found is its
    own, and what is left open is as it was found."""
    recipe = build(Recipe, job.recipe)
    numbers = {k: getattr(recipe, k) for k in Recipe.__dataclass_fields__ if k != "checkpoint_every"}
    open_ = {k for k in ("epochs", "max_length") if numbers[k] is None}
    if any(settings[k] != v for k, v in numbers.items() if k not in open_):
        return False
    found = either(job.method or "mos")
    config = build(found.config, {**said(job.method), **job.options})
    given = json.loads(json.dumps(dump(config)))
    given.pop("is")
    for name in job.tenants:
        at = f"{name}: " if several else ""
        told = settings[f"{at}options"]
        own = {k: told.get(k) for k in given} if found.asks(config) else told
        if found.told is not None:
            own = {k: given[k] if given.get(k, v) in (None, []) else v for k, v in own.items()}
        if settings[f"{at}method"] != found.name or own != given:
            return False
    return True


def alone(commons: Commons, common: str | None, names: Collection[str]) -> None:
    """Raises where a store has a common of this name that the tenants which are now trained would not replace."""
    others = [n for n in commons.readers(common) if n not in names] if common is not None else []
    if others:
        raise CommonweightError(
            f"{commons.folder}: the common {common!r} already exists, with {', '.join(others[:5])}; choose another "
            f"name, or train late tenants of it one by one: --store {commons.folder} --common {common}"
        )
