"""Runs a method over models in memory, tensor by tensor. The streaming executor takes the same methods as they are."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..core import CommonweightError
from .registry import CONTEXT, At, Method
from .source import Source, open_source


@torch.no_grad()
def run(
    method: Method,
    models: Any,
    base: Any = None,
    *,
    weights: float | Sequence[float] | None = None,
    dtype: torch.dtype | None = None,
    piece: int | None = None,
    **options: Any,
) -> dict[str, Tensor]:
    """The merged state dict, in the dtype of the base (else of the first model) or in `dtype`; computed in float32.

    models: state dicts, modules or paths, as a list or as name -> model. piece: at most so many elements at a time
    where the method allows it; the result does not depend on it.
    """
    named = (
        models.items()
        if isinstance(models, Mapping)
        else enumerate(models if isinstance(models, Sequence) else [models])
    )
    sources = [open_source(m, f"model {k}") for k, m in named]
    _inputs(method, sources, base)
    root = None if base is None else open_source(base, "base")
    config = method.resolve(options, len(sources))
    config["weights"] = _weights(method, weights, config, len(sources))
    names = _names(sources, root)
    lead = root or sources[0]
    out: dict[str, Tensor] = {}
    copied = {n for n in names if not lead.dtypes[n].is_floating_point}
    where = _places([n for n in names if n not in copied], lead)
    work = _Work(method, config, sources, root, piece)
    seen = work.survey(where, "model")
    for name in names:
        if name in copied:
            out[name] = _same(sources, root, name)
            continue
        at = where[name]
        local = work.survey({name: at}, "tensor")
        parts = [work.call(*p, seen=seen if local is None else local) for p in work.pieces(at)]
        out[name] = torch.cat(parts).view(at.shape).to(dtype or lead.dtypes[name]) if parts else lead.read(name).clone()
    return out


class _Work:
    def __init__(
        self, method: Method, config: dict[str, Any], sources: list[Source], root: Source | None, piece: int | None
    ):
        self.method, self.config, self.sources, self.root, self.piece = method, config, sources, root, piece
        wanted = inspect.signature(method.function).parameters
        self.context = {k for k in CONTEXT if k in wanted}

    def call(self, tensors: list[Tensor], base: Tensor | None, at: At, seen: Any) -> Tensor:
        more = {
            k: v for k, v in {"weights": self.config["weights"], "at": at, "seen": seen}.items() if k in self.context
        }
        config = {k: v for k, v in self.config.items() if k != "weights"}
        return self.method.function(tensors, base, **config, **more).reshape(-1)

    def survey(self, where: Mapping[str, At], scope: str) -> Any:
        first = self.method.survey
        if first is None or first.scope(self.config) != scope:
            return None
        seen, done, numel = None, False, sum(math.prod(at.shape) for at in where.values())
        while not done:
            total: dict[str, Tensor] = {}
            for at in where.values():
                for tensors, base, part in self.pieces(at):
                    for k, v in first.look(tensors, base, at=part, seen=seen, numel=numel, **self.config).items():
                        total[k] = total[k] + v if k in total else v
            if not total:
                return None
            seen, done = first.join(total, seen, numel=numel, **self.config)
        return seen

    def pieces(self, at: At) -> Iterator[tuple[list[Tensor], Tensor | None, At]]:
        tensors = [self.read(s, at.name) for s in self.sources]
        base = None if self.root is None else self.read(self.root, at.name)
        numel = math.prod(at.shape)
        if numel == 0:
            return
        if not at.shape:  # every piece has a first dimension
            tensors, base = [t.view(1) for t in tensors], None if base is None else base.view(1)
        by = self.method.by(self.config)
        if self.piece is None or by == "tensor" or not at.shape or (by == "row" and len(at.shape) == 1):
            yield tensors, base, at
            return
        width = numel // at.shape[0]
        rows = max(1, self.piece // width)
        for i in range(0, at.shape[0], rows):
            part = at._replace(start=i * width)
            yield [t[i : i + rows] for t in tensors], None if base is None else base[i : i + rows], part

    def read(self, source: Source, name: str) -> Tensor:
        t = source.read(name).detach().cpu().float()
        if not t.sum().isfinite() and not t.isfinite().all():  # the sum: one pass where all is well
            raise CommonweightError(
                f"{name}: {source.label} has {_count(~t.isfinite())} there that are NaN or infinite"
            )
        return t


def _count(bad: Tensor) -> str:
    n = int(bad.sum())
    return f"{n} number{'s' if n > 1 else ''}"


def _inputs(method: Method, sources: list[Source], base: Any) -> None:
    low, high = method.models
    if len(sources) < low or (high is not None and len(sources) > high):
        wanted = f"{low}" if low == high else f"at least {low}" if high is None else f"{low} to {high}"
        raise CommonweightError(f"{method.name}: {len(sources)} models given; it takes {wanted}")
    if method.base == "required" and base is None:
        raise CommonweightError(
            f"{method.name}: base is missing; give base=, the model that the others were trained from"
        )
    if method.base == "none" and base is not None:
        raise CommonweightError(f"{method.name} takes no base; leave base out, or list it among the models")


def _weights(method: Method, weights: Any, config: Mapping[str, Any], n: int) -> tuple[float, ...]:
    if weights is None:
        return (1 / n if method.weight == "1/T" else float(method.weight),) * n
    if "weights" not in inspect.signature(method.function).parameters:
        raise CommonweightError(f"{method.name} takes no weights; leave them out")
    if isinstance(weights, int | float):
        weights = [weights] * n
    weights = list(weights)
    if len(weights) != n:
        raise CommonweightError(f"{method.name}: {len(weights)} weights for {n} models; give one for each model")
    for i, w in enumerate(weights):
        if isinstance(w, bool) or not isinstance(w, int | float) or not math.isfinite(w):
            raise CommonweightError(f"{method.name}: weights[{i}] is {w!r}; wanted a finite number")
    if method.normalises(config) and abs(sum(weights)) < 1e-8:
        raise CommonweightError(
            f"{method.name}: the weights {weights} sum to zero, by which it divides; change one of them"
        )
    return tuple(float(w) for w in weights)


def _names(sources: list[Source], root: Source | None) -> list[str]:
    first, *others = [root, *sources] if root else sources
    for s in others:
        for name in sorted(first.shapes.keys() - s.shapes.keys()):
            raise CommonweightError(
                f"{name}: {s.label} has no such tensor, {first.label} has; leave it out of all, or add it"
            )
        for name in sorted(s.shapes.keys() - first.shapes.keys()):
            raise CommonweightError(
                f"{name}: {s.label} has such a tensor, {first.label} has none; leave it out, or add it"
            )
        for name, shape in first.shapes.items():
            if s.shapes[name] != shape:
                raise CommonweightError(f"{name}: {s.label} has shape {s.shapes[name]}, {first.label} has {shape}")
            if s.dtypes[name].is_floating_point != first.dtypes[name].is_floating_point:
                raise CommonweightError(
                    f"{name}: {s.label} has {s.dtypes[name]}, {first.label} has {first.dtypes[name]}"
                )
    return sorted(first.shapes)


def _places(names: list[str], lead: Source) -> dict[str, At]:
    """Offsets in the sorted model; a block is the first number that stands alone between dots."""
    found = {n: re.search(r"(?:^|\.)(\d+)\.", n) for n in names}
    blocks = 1 + max((int(m[1]) for m in found.values() if m), default=-1)
    out, offset = {}, 0
    for name in names:
        m = found[name]
        out[name] = At(name, lead.shapes[name], 0, offset, (int(m[1]), blocks) if m else None)
        offset += math.prod(lead.shapes[name])
    return out


def _same(sources: list[Source], root: Source | None, name: str) -> Tensor:
    first, *others = [root, *sources] if root else sources
    value = first.read(name)
    for s in others:
        if not torch.equal(s.read(name), value):
            raise CommonweightError(
                f"{name}: whole numbers that differ between {first.label} and {s.label} cannot be merged"
            )
    return value.clone()
