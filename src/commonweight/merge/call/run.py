"""One method over whole models, into memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from ...core import CommonweightError
from ..inputs import checks as inputs
from ..inputs.given import given
from ..registry import Method
from ..sources.at import places
from ..sources.source import Read, Source
from ..stream.engine import Engine
from ..stream.pool import cores
from ..stream.work import Job, Task

_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


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
    weights: Any = None,
    dtype: torch.dtype | str | None = None,
    piece: int | None = None,
    threads: int | None = None,
    **options: Any,
) -> dict[str, Tensor]:
    """The merged state dict, in the dtype of the base (else of the first model) or in `dtype`; computed in float32.

    models, base: as `given` takes them; weights: a number, or one a model (a list, an array, a tensor). piece: at most
    so many elements at a time where the method allows it; sums over a tensor may change in their last bit with it,
    nothing else does. threads: the processors of this process if not given; they change nothing.
    """
    for name, n in (("piece", piece), ("threads", threads)):
        if n is not None and (isinstance(n, bool) or not isinstance(n, int) or n < 1):
            raise CommonweightError(f"{name} is {n!r}; wanted a whole number of at least 1")
    wanted = _dtype(dtype)
    found = given(models, base, method.base != "none")
    todo = tasks(method, found.sources, found.base, inputs.plain(weights), options, wanted, piece, found.dtypes)
    out = State(todo)
    for _ in Engine(threads or cores()).run(todo, out):
        pass
    merged = out.tensors()
    return {n: merged[n] for n in sorted(merged)}


def _dtype(asked: Any) -> torch.dtype | None:
    found = getattr(torch, asked, None) if isinstance(asked, str) else asked
    if asked is None or found in _DTYPES:
        return found
    raise CommonweightError(f"dtype is {asked!r}; wanted one of {', '.join(str(d) for d in _DTYPES)}, or its name")


def tasks(
    method: Method,
    sources: Sequence[Source],
    root: Source | None,
    weights: float | Sequence[float] | None = None,
    options: Mapping[str, Any] = MappingProxyType({}),
    dtype: torch.dtype | None = None,
    piece: int | None = None,
    dtypes: Mapping[str, torch.dtype] | None = None,
) -> list[Task]:
    """What is to be done, checked: one job over all tensors, so that its surveys see the whole model. dtypes: of the
    result, where they are not those of the base, else of the first model."""
    inputs.counts(method, len(sources), root is not None)
    job = Job(method, inputs.configure(method, options, weights, len(sources)))
    lead = root or sources[0]
    names = inputs.names([root, *sources] if root else sources)
    floats = places({n: lead.shapes[n] for n in names if lead.dtypes[n].is_floating_point})
    copied = places({n: lead.shapes[n] for n in names if n not in floats})
    return [
        Task(
            at,
            job if name in floats else None,
            tuple(Read(s, name) for s in sources),
            Read(root, name) if root else None,
            (dtype if name in floats else None) or (dtypes or lead.dtypes)[name],
            piece,
        )
        for name, at in {**floats, **copied}.items()
    ]
