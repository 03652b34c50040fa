"""A run's files and settings, read and looked at before anything is loaded or trained."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from ..core import CommonweightError, build, safe, unknown
from ..formats.codecs import get as get_codec
from ..methods import either
from . import beside, liger, standing
from .base import pick_device, pick_dtype
from .classifier import POOLS
from .data import Data, columns, named, reading, split
from .names import DTYPES, QUANTISED
from .offload import device_map
from .quantise import configuration
from .recipe import Recipe
from .rows import Row, read
from .tasks import Classify, check_columns, get


@dataclass(frozen=True, kw_only=True)
class Source:
    """One tenant's files. dev: a file, or a share of the training rows as text ("0.1"). retain: see `Data`."""

    data: str
    dev: str | None = None
    eval: str | None = None
    text_column: str | None = None
    label_column: str | None = None
    prompt_column: str | None = None
    completion_column: str | None = None
    truncation_side: str | None = None
    reward: Any = None
    task_column: str | None = None
    retain: str | None = None
    no_header: bool = False

    @property
    def fraction(self) -> float | None:
        """0.1 from "0.1"; None for a file's name. A file may be called 0.1 only with a folder before it."""
        try:
            return None if self.dev is None else float(self.dev)
        except ValueError:
            return None


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is trained: tenants by name, and how. method: None is mos, or that of the common that is there. sites: a
    pattern, or callable(name, module). modules_to_save, token_rows: as in `Host.add`, also as texts.
    pool: of a classifier, see `open_host`; None is that of the common's heads. over: the tenants that those of the job
    stand on, by a store's names or as files. tokenizer: a folder or name, in place of the base's own."""

    tenants: Mapping[str, Source]
    task: str = "classify"
    method: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    common: str | None = None
    sites: Any = None
    modules_to_save: Any = None
    token_rows: Any = None
    dtype: str = "auto"
    device: str = "auto"
    quantize: str | None = None
    shard: bool = False
    device_map: Any = None
    liger: bool = False
    codec: Any = None
    pool: str | None = None
    tokenizer: str | None = None
    over: Sequence[str] = ()
    recipe: Mapping[str, Any] = field(default_factory=dict)

    @property
    def whole(self) -> dict[str, Any]:
        """What only a tenant that stands on none can have."""
        return {k: getattr(self, k) for k in ("common", "sites", "modules_to_save", "token_rows")}


def choices(job: Job, name: str) -> dict[str, Any]:
    """What a run's report says of how a tenant was asked for, JSON-ready, beside method, options and recipe."""
    s = job.tenants[name]
    return {
        "data": s.data, "dev": s.dev, "retain": s.retain, "task": job.task,
        "sites": job.sites if isinstance(job.sites, str) else None, "codec": job.codec,
        "modules_to_save": beside.modules(job.modules_to_save), "token_rows": beside.rows(job.token_rows),
        "tokenizer": job.tokenizer, "quantize": job.quantize, "over": [*job.over],
    }  # fmt: skip


def check(job: Job) -> None:
    """Raises: CommonweightError for a name, an option or a number that cannot be."""
    for _, look in checks(job):
        look()


def checks(job: Job) -> Iterator[tuple[tuple[str, ...], Callable[[], object]]]:
    """(which field, what raises where it is wrong)."""
    for name in job.tenants:
        yield ("tenants", name), partial(safe, name)
    yield ("task",), partial(get, job.task)
    for name, s in job.tenants.items():
        yield ("tenants", name), partial(check_columns, job.task, s.prompt_column, s.completion_column)
    yield ("over",), partial(standing.listed, job.over)
    yield ("over",), partial(standing.fits, job.method, job.over, [*job.tenants], job.whole)
    yield ("options",), lambda: build(either(job.method or "mos").config, job.options)
    yield ("modules_to_save",), partial(beside.modules, job.modules_to_save)
    yield ("token_rows",), partial(beside.rows, job.token_rows)
    yield ("recipe",), partial(build, Recipe, job.recipe)
    if job.common is not None:
        yield ("common",), partial(safe, job.common)
    for pattern, codec in job.codec.items() if isinstance(job.codec, Mapping) else [("", job.codec)]:
        if codec is not None:
            yield ("codec", str(pattern)) if pattern else ("codec",), partial(get_codec, codec)
    if job.pool is not None:
        yield ("pool",), partial(_pool, job.pool)
    if job.device != "auto":
        yield ("device",), partial(pick_device, job.device)
    if job.device_map is not None:
        yield ("device_map",), partial(device_map, job.device_map)
    if job.liger:
        yield ("liger",), liger.check
    if job.quantize is not None and job.quantize not in QUANTISED:
        yield ("quantize",), partial(configuration, job.quantize, torch.float32)
    if job.dtype not in DTYPES:
        yield ("dtype",), partial(pick_dtype, job.dtype, "cpu")


def _pool(pool: str) -> None:
    if pool not in (*POOLS, "transformers"):
        raise unknown("pool", pool, (*POOLS, "transformers"))


def read_all(job: Job, say: Callable[[str], None]) -> tuple[dict[str, Data], dict[str, list[Row]]]:
    """(rows to train on, rows to measure on) by tenant, the labels of a classification found."""
    data, evals = {}, {}
    seed = build(Recipe, job.recipe).seed
    for name, s in job.tenants.items():
        asked = [c for c in columns(s).values() if c]
        how: dict[str, Any] = {"no_header": s.no_header, "say": say}
        rows = read(s.data, asked, **how)
        fraction, dev = s.fraction, s.fraction
        if s.dev is not None and fraction is None:
            dev = read(s.dev, asked, split="validation", **how)
        if s.eval is not None:
            evals[name] = read(s.eval, asked, split="test", **how)
        labels = None
        if job.task == "classify":
            kept, _ = split(rows, dev, seed, f"{name}: " if len(job.tenants) > 1 else "")
            whole = None if fraction is None else rows
            labels = named(s.data, lambda r, s=s: Classify.classes(r, s.label_column), kept, whole)
        data[name] = Data(
            rows=rows, dev=dev, labels=labels, **reading(s),
            retain=() if s.retain is None else read(s.retain, asked, **how),
            sources=(s.data, s.data if s.dev is None or fraction is not None else s.dev),
        )  # fmt: skip
    return data, evals


def options_of(where: str, cls: type, value: Any) -> Any:
    """`build`, with the place in its errors."""
    try:
        return build(cls, value)
    except CommonweightError as e:
        raise CommonweightError(f"{where}: {e}") from e
