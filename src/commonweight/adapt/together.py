"""Runs of several tenants at once, and of tenants that come late to a common in a store."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from ..commons import Commons
from ..core import CommonweightError, safe, unknown
from ..formats import native
from ..host import Host
from . import standing
from .classifier import POOLER
from .files import Outcome, look, train
from .job import Job, check
from .place import out_folder
from .target import InFiles, InStore, Target, alone, resumes
from .trainer import Progress


def run_together(
    model: str,
    job: Job,
    *,
    out: str | Path | None = None,
    store: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    dry_run: bool = False,
    say: Callable[[str], None] = print,
    progress: Callable[[Progress], None] | None = None,
) -> dict[str, Outcome]:
    """Trains the tenants of a job together, and writes a folder (a file for each, and ``report.json``) or a store.

    The run's state is kept in ``<out>.checkpoint/`` or ``<store>.checkpoint/`` until all tenants are written and
    measured. overwrite: existing files are replaced.
    dry_run: ends before the first step, with {}; then neither is needed.
    """
    check(job)
    if dry_run:
        look(model, job, bring=_below(job, store), dry_run=True, say=say)
        return {}
    if (out is None) == (store is None):
        raise CommonweightError(
            "several tenants go to a folder, --out FOLDER, or into a store, --store FOLDER: name one of them"
        )
    if store is not None:
        commons = Commons(store, make="late")
        alone(commons, job.common, job.tenants)
        target: Target = InStore(commons, beside(commons.folder))
    else:
        folder = Path(out)  # type: ignore[arg-type]
        again = resume and resumes(folder / "report.json", beside(folder), str(model), job)
        out_folder(folder, [*map(safe, job.tenants)], overwrite or again)
        paths = {n: folder / f"{safe(n)}.safetensors" for n in job.tenants}
        target = InFiles(paths, beside(folder), folder / "report.json")
    return train(model, job, target, bring=_below(job, store), resume=resume, say=say, progress=progress)


def run_late(
    model: str,
    job: Job,
    store: str | Path,
    *,
    resume: bool = False,
    dry_run: bool = False,
    say: Callable[[str], None] = print,
    progress: Callable[[Progress], None] | None = None,
) -> dict[str, Outcome]:
    """Trains the tenants of a job and publishes them into a store; with a common, as late tenants of it.

    The common is loaded from any of its tenants in the store, and its pools do not change. The job uses that tenant's
    method and options, and its sites and codec if the job names none.
    dry_run: ends before the first step, with {}.
    """
    check(job)
    if dry_run and job.common is None:
        look(model, job, bring=_below(job, store), dry_run=True, say=say)
        return {}
    commons = Commons(store, make="late" if job.common is None else False)
    target = InStore(commons, beside(commons.folder, *job.tenants))
    if job.common is None:
        return train(model, job, target, bring=_below(job, store), resume=resume, say=say, progress=progress)
    there = standing_in(commons, job.common, job.tenants)
    said = there.codec
    if job.pool is None:
        job = replace(job, pool=there.pool)
    if job.method in (None, there.method):
        job = replace(
            job, method=there.method, options={**there.options, **job.options},
            sites=job.sites or (lambda name, _: name in there.sites),
        )  # fmt: skip
    if job.codec is None and isinstance(said, str):
        job = replace(job, codec=said)

    def bring(host: Host) -> None:
        host.load_from(commons, there.tenant, as_=free(there.tenant, job.tenants))

    if dry_run:
        look(model, job, bring=bring, said=said, dry_run=True, say=say)
        return {}
    return train(model, job, target, bring=bring, said=said, resume=resume, say=say, progress=progress)


def _below(job: Job, store: str | Path | None) -> Callable[[Host], None]:
    """What brings the tenants that those of a job stand on."""
    return standing.bringing(job.over, Commons(store, make=False) if store is not None and job.over else None)


class Standing(NamedTuple):
    """A common in a store. tenant: one that brings it. method, options, sites, codec: that tenant's; pool: what its
    classification head reads, None for the default or where it has none."""

    tenant: str
    method: str
    options: Mapping[str, Any]
    sites: frozenset[str]
    pool: str | None
    codec: Any


def standing_in(commons: Commons, common: str, but: Collection[str] = ()) -> Standing:
    """What a late tenant of a common goes by. Raises: CommonweightError for a common that is not there, or twice."""
    parent = bringer(commons, common, but)
    found = commons.manifest(parent)
    header = found.tenant
    sites = frozenset(native.unpack_sites(str(commons.folder), header["sites"]))
    pool = POOLER if any(k.startswith(f"{POOLER}_head.") for k in found.pools) else None
    return Standing(parent, header["method"], header["config"], sites, pool, header.get("codec"))


def method_of(store: str | Path, common: str) -> str:
    """The method of a common's tenants in a store."""
    return standing_in(Commons(store, make=False), common).method


def bringer(commons: Commons, common: str, but: Collection[str] = ()) -> str:
    """A tenant that carries the common, if it can be one that is not trained anew. Raises: where there is no such
    common, or two of one name."""
    found = commons.readers(common)
    if not found:
        there = {r.common for r in commons.list() if r.common is not None}
        raise CommonweightError(f"{commons.folder}: {unknown('common', common, there)}")
    return next((n for n in found if n not in but), found[0])


def free(name: str, taken: Collection[str]) -> str:
    """A name for the tenant that brings the common, which is not among those to be trained."""
    while name in taken:
        name = f"{name}-"
    return name


def beside(folder: Path, *names: str) -> Path:
    """Where a run's state lies: a store holds nothing but its own files."""
    whole = folder.absolute()
    return whole.with_name(".".join([whole.name, *map(safe, names), "checkpoint"]))
