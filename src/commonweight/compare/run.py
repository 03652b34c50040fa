"""One run, from a job to its record. The training is `adapt`'s; here it is only timed, measured and written down."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch

from .. import __version__
from ..adapt import Progress, Recipe, adapt, evaluate, open_host, read
from ..adapt.files import thin
from ..adapt.suited import check_texts
from ..core import CommonweightError, build
from ..host import Host, Tenant
from ..host.files import settle
from ..methods import plan
from . import peak
from .cache import Cache
from .job import Job
from .size import nbytes

NAME = "compared"
Watch = Callable[[dict[str, float]], None]


@lru_cache(maxsize=1)
def opened(model: str, task: str, dtype: str) -> Host:
    """The base, loaded once per process. Raises: CommonweightError, also for one of images or sounds."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    host = open_host(model, task, dtype=dtype)
    check_texts(host.model, "compare")
    return host


rows = lru_cache(maxsize=64)(read)


def execute(job: Job, cache: Cache | None = None, watch: Watch | None = None) -> dict[str, Any]:
    """The record of a run: from the cache when it is there, else trained, measured and cached.

    watch: is given the dev metrics after every epoch of a run that is trained; what it raises ends the run, and is
    not recorded here. A run that fails by itself, such as one whose loss is not finite, is a record too.
    """
    host = opened(job.model, job.task, job.dtype)
    key = job.key(host)
    if cache is not None and (found := cache.get(key)) is not None:
        return found
    record = {"key": key, "job": job.to_json(), "version": __version__, **_trained(host, job, watch)}
    if cache is not None:
        cache.put(record)
    return record


def _trained(host: Host, job: Job, watch: Watch | None) -> dict[str, Any]:
    columns = tuple(c for c in job.columns.values() if c)
    d = job.data
    train, test = rows(d.train, columns), rows(d.test, columns, split="test")
    dev = rows(d.dev, columns, split="validation") if isinstance(d.dev, str) else d.dev
    clock = Clock(watch)
    if NAME in host:
        host.remove(NAME)  # of a run that was interrupted
    held = peak.start()
    try:
        result = adapt(
            host, NAME, train, task=job.task, method=job.method, options=job.options, dev_rows=dev, sites=job.sites,
            seed=job.seed, lr=job.rate, progress=clock, **job.columns, **job.recipe,
        )  # fmt: skip
    except CommonweightError as e:
        return {"state": "failed", "error": str(e), "curve": [], **_machine()}
    memory = peak.beyond(held)
    try:
        trained = _trainable(result.tenant)
        tenant = host.compact(result.tenant.name)
        if job.codec is not None:
            settle(tenant, job.codec)
        at_once = build(Recipe, job.recipe).eval_rows  # as the command measures: the same bits
        how: dict[str, Any] = {"max_length": result.settings["max_length"], "batch_size": at_once, **job.columns}
        measured = {} if job.trial else evaluate(host, tenant.name, test, job.task, **how)
        return {
            "state": "done", "test": measured, "dev": result.metrics, **sizes(tenant, job.codec),
            "parameters": trained, "peak_memory": memory, "seconds": result.seconds,
            "seconds_per_step": clock.median, "steps": result.steps, "curve": thin(result.curve),
            "lr": job.rate, "settings": result.settings, "command": job.command(torch.get_num_threads()), **_machine(),
        }  # fmt: skip
    finally:
        for name in [n for n in host if n.startswith(NAME)]:
            host.remove(name)


def sizes(tenant: Tenant, codec: str | None = None) -> dict[str, int]:
    """Bytes of the saved pools without the head; of those of them that a further tenant brings; of the head, which
    `onebit` leaves as it is."""
    body = plan(tenant.config, tenant.sites, seed=tenant.plan.seed)
    whole, of_head = nbytes(body, codec), None if codec == "onebit" else codec
    return {
        "bytes": whole, "marginal_bytes": nbytes(body, codec, own=True),
        "head_bytes": nbytes(tenant.plan, of_head) - nbytes(body, of_head),
    }  # fmt: skip


def _trainable(tenant: Tenant) -> int:
    return plan(tenant.config, tenant.sites, seed=tenant.plan.seed).count()


def _machine() -> dict[str, Any]:
    return {"machine": {
        "threads": torch.get_num_threads(), "torch": torch.__version__, "python": platform.python_version(),
        "device": "cuda" if torch.cuda.is_available() else "cpu",
    }}  # fmt: skip


class Clock:
    """A progress callback that times steps; those after which the dev rows were measured are left out."""

    def __init__(self, watch: Watch | None = None):
        self.watch, self.before, self.took = watch, time.perf_counter(), []

    def __call__(self, p: Progress) -> None:
        now = time.perf_counter()
        if p.dev is None and p.step > 1:
            self.took.append(now - self.before)
        elif p.dev is not None and self.watch is not None:
            self.watch(p.dev)
        self.before = time.perf_counter()

    @property
    def median(self) -> float | None:
        return statistics.median(self.took) if self.took else None
