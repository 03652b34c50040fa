"""One method over whole models, into memory."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from .registry import Method
from .source import Source, open_source
from .stream import inputs
from .stream.engine import Engine
from .stream.work import Job, Read, Task


class State:
    """A sink: the merged tensors in memory."""

    def __init__(self, tasks: Sequence[Task]):
        self._flat = {t.at.name: torch.empty(t.numel, dtype=t.dtype) for t in tasks}
        self._shapes = {t.at.name: t.at.shape for t in tasks}

    def write(self, name: str, start: int, values: Tensor) -> None:
        self._flat[name][start : start + values.numel()] = values

    def tensors(self) -> dict[str, Tensor]:
        return {n: t.view(self._shapes[n]) for n, t in self._flat.items()}


def run(
    method: Method,
    models: Any,
    base: Any = None,
    *,
    weights: float | Sequence[float] | None = None,
    dtype: torch.dtype | None = None,
    piece: int | None = None,
    threads: int | None = None,
    **options: Any,
) -> dict[str, Tensor]:
    """The merged state dict, in the dtype of the base (else of the first model) or in `dtype`; computed in float32.

    models: state dicts, modules or paths, as a list or as name -> model. piece: at most so many elements at a time
    where the method allows it; sums over a tensor may change in their last bit with it, nothing else does. threads: the
    processors of this process if not given; they change nothing.
    """
    named = (
        models.items()
        if isinstance(models, Mapping)
        else enumerate(models if isinstance(models, Sequence) else [models])
    )
    sources = [open_source(m, f"model {k}") for k, m in named]
    root = None if base is None else open_source(base, "base")
    todo = tasks(method, sources, root, weights, options, dtype, piece)
    out = State(todo)
    for _ in Engine(threads or cores()).run(todo, out):
        pass
    merged = out.tensors()
    return {n: merged[n] for n in sorted(merged)}


def tasks(
    method: Method,
    sources: Sequence[Source],
    root: Source | None,
    weights: float | Sequence[float] | None = None,
    options: Mapping[str, Any] = MappingProxyType({}),
    dtype: torch.dtype | None = None,
    piece: int | None = None,
) -> list[Task]:
    """What is to be done, checked: one job over all tensors, so that its surveys see the whole model."""
    inputs.counts(method, len(sources), root is not None)
    job = Job(method, inputs.configure(method, options, weights, len(sources)))
    lead = root or sources[0]
    names = inputs.names([root, *sources] if root else sources)
    floats = inputs.places({n: lead.shapes[n] for n in names if lead.dtypes[n].is_floating_point})
    copied = inputs.places({n: lead.shapes[n] for n in names if n not in floats})
    return [
        Task(
            at,
            job if name in floats else None,
            tuple(Read(s, name) for s in sources),
            Read(root, name) if root else None,
            (dtype if name in floats else None) or lead.dtypes[name],
            piece,
        )
        for name, at in {**floats, **copied}.items()
    ]


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
