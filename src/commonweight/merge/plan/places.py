"""The result's tensors by name, and where each is read in the models: whole models, or slices put on one another."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from ...core import CommonweightError, counted
from ..architecture.stacks import lengths, place
from ..inputs.models import Models
from ..schema.types import Input, Recipe, Slice
from ..sources.source import Source
from .frame import Frame
from .rules import Ruled, ruled

_BLOCKS = 10_000  # of a result: what a few lines can ask for by the number


class Out(NamedTuple):
    """A tensor of the result. names: its name in each of the slice's inputs, in their order; t: its depth, 0 to 1."""

    name: str
    part: Slice
    names: tuple[str, ...]
    ruled: Ruled
    t: float

    def of(self, model: str) -> str:
        """Its name in a model; in one that the slice does not list (the base, one to take from), as in its first."""
        return next((n for x, n in zip(self.part.inputs, self.names) if x.model == model), self.names[0])


def whole(recipe: Recipe) -> bool:
    return len(recipe.slices) == 1 and all(x.layers is None for x in recipe.slices[0].inputs)


def order(recipe: Recipe) -> list[tuple[str, int]]:
    """The blocks of slices one after the other: (each slice's first model, their number in it).

    Raises: CommonweightError for more than `_BLOCKS`.
    """
    if (total := sum(map(_depth, recipe.slices))) > _BLOCKS:
        raise CommonweightError(f"slices: {counted(total, 'block')}; wanted at most {_BLOCKS:,}")
    return [(part.inputs[0].model, i) for part in recipe.slices for i in range(*_span(part.inputs[0]))]


def _depth(part: Slice) -> int:
    first, end = _span(part.inputs[0])
    return end - first


def outs(recipe: Recipe, models: Models, frame: Frame | None) -> list[Out]:
    """All of them, those among them that rules drop; frame: of slices. Raises: CommonweightError for what some models
    do not have."""
    return _whole(recipe, models) if frame is None else _sliced(recipe, models, frame)


def _whole(recipe: Recipe, models: Models) -> list[Out]:
    part = recipe.slices[0]
    users = [*([recipe.base] if recipe.base else []), *(x.model for x in part.inputs)]
    sources = [models.open(u) for u in dict.fromkeys(users)]
    said = {n: ruled(recipe, n) for n in sorted({n for s in sources for n in s.shapes})}
    for name, rules in said.items():
        _everywhere(name, rules, [(s, name) for s in sources])
    every = lengths(n for n, rules in said.items() if not rules.drop)
    return [Out(n, part, (n,) * len(part.inputs), rules, _place(n, every)) for n, rules in said.items()]


def _place(name: str, every: Mapping[str, int]) -> float:
    """In its own stack: an encoder and a decoder go from 0 to 1 each."""
    at = place(name)
    return 0.0 if at is None else _t(at[1], every.get(at[0], 0))


def _sliced(recipe: Recipe, models: Models, frame: Frame) -> list[Out]:
    """Blocks one after the other; what comes before them is the first slice's, what comes after them the last's."""
    out: list[Out] = []
    offset = 0
    for i, part in enumerate(recipe.slices):
        if any(_span(x)[1] - _span(x)[0] != _depth(part) for x in part.inputs):
            raise CommonweightError(f"slices[{i}]: its models have different numbers of layers; give as many of each")
        sources = [models.open(x.model) for x in part.inputs]
        for x, source in zip(part.inputs, sources):
            every = lengths(source.shapes)
            blocks = min(every.get(p, 0) for p in frame.prefixes)
            if _span(x)[1] > blocks:
                raise CommonweightError(
                    f"slices[{i}]: {x.model} has {counted(blocks, 'layer')}; {_span(x)[1]} are asked for"
                )
        for name, at in _names(part, sources, frame, first=i == 0, last=i == len(recipe.slices) - 1):
            made = name if at is None else _renamed(name, offset + at)
            mine = tuple(name if at is None else _renamed(name, _span(x)[0] + at) for x in part.inputs)
            rules = ruled(recipe, made)
            _everywhere(made, rules, list(zip(sources, mine)))
            out.append(Out(made, part, mine, rules, _t(at, _depth(part))))
        offset += _depth(part)
    return out


def _names(
    part: Slice, sources: Sequence[Source], frame: Frame, first: bool, last: bool
) -> Iterator[tuple[str, int | None]]:
    """Each name that a model of the slice has there, with block 0 for the slice's first; and which block it is."""
    found: set[tuple[str, int | None]] = set()
    for x, source in zip(part.inputs, sources):
        start, end = _span(x)
        for name in source.shapes:
            depth = frame.block(name)
            if depth is None:
                if last if name in frame.last else first:
                    found.add((name, None))
            elif start <= depth < end:
                found.add((_renamed(name, depth - start), depth - start))
    yield from sorted(found, key=lambda e: e[0])


def _everywhere(name: str, rules: Ruled, found: Sequence[tuple[Source, str]]) -> None:
    """A tensor that is taken from one model, or dropped, may be missing in the others."""
    if rules.drop or rules.take is not None:
        return
    for source, mine in found:
        if mine not in source.shapes:
            has = next(s for s, n in found if n in s.shapes)
            raise CommonweightError(
                f"{name}: {source.label} has no such tensor, {has.label} has; leave it out by a rule (drop: true), "
                "take it from one model (take: MODEL), or add it"
            )


def _t(depth: int | None, blocks: int) -> float:
    return 0.0 if depth is None else depth / (blocks - 1) if blocks > 1 else 1.0


def _span(x: Input) -> tuple[int, int]:
    assert x.layers is not None
    return x.layers


def _renamed(name: str, depth: int) -> str:
    return re.sub(r"(^|\.)(\d+)\.", lambda m: f"{m[1]}{depth}.", name, count=1)
