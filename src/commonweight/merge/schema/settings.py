"""Numbers of a recipe that may depend on the tensor: by a pattern of its name, or by the depth of its block."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from ...core import CommonweightError


@dataclass(frozen=True)
class Gradient:
    """Values from the first block to the last, evenly spaced and interpolated; words and flags change in steps."""

    values: tuple[Any, ...]

    def at(self, t: float) -> Any:
        if not all(isinstance(v, int | float) and not isinstance(v, bool) for v in self.values):
            return self.values[int(t * (len(self.values) - 1))]
        place = t * (len(self.values) - 1)
        low = int(place)
        high = min(len(self.values) - 1, low + 1)
        return (1 - (place - low)) * self.values[low] + (place - low) * self.values[high]


@dataclass(frozen=True)
class Cases:
    """The first whose part of a name occurs in the tensor's name decides; None takes every tensor."""

    cases: tuple[tuple[str | None, Any], ...]


@dataclass(frozen=True)
class Required:
    """In the place of a value that somebody has to give."""

    what: str


def value(setting: Any, name: str, t: float) -> Any:
    """The setting's value for a tensor whose block lies at t from 0 to 1; None where it says nothing.

    Raises: CommonweightError for one that is required, where it was not given.
    """
    if isinstance(setting, Required):
        raise CommonweightError(f"{name}: {setting.what} is missing; it has no default, give it for every tensor")
    if isinstance(setting, Gradient):
        return setting.at(t)
    if isinstance(setting, Cases):
        return next((value(s, name, t) for part, s in setting.cases if part is None or part in name), None)
    return setting


@dataclass(frozen=True)
class Select:
    """Tensors by name (any of some globs or /regular expressions/) and by block (any of some ranges)."""

    patterns: tuple[str, ...] = ()
    layers: tuple[tuple[int, int], ...] = ()

    def holds(self, name: str, block: int | None) -> bool:
        if self.layers and (block is None or not any(a <= block <= b for a, b in self.layers)):
            return False
        return not self.patterns or any(_matches(p, name) for p in self.patterns)


def _matches(pattern: str, name: str) -> bool:
    if len(pattern) > 1 and pattern[0] == pattern[-1] == "/":
        return re.search(pattern[1:-1], name) is not None
    return fnmatchcase(name, pattern)


def select(where: str, tensors: Any, layers: Any) -> Select:
    """Raises: CommonweightError, with `where`, for what is no pattern, no regular expression or no range."""
    if tensors is not None and (not isinstance(tensors, str | list) or not tensors):
        raise CommonweightError(f"{where}: tensors is {tensors!r}; wanted a pattern like '*.mlp.*', or a list of them")
    patterns = [tensors] if isinstance(tensors, str) else tensors or []
    for p in patterns:
        if not isinstance(p, str):
            raise CommonweightError(f"{where}: tensors is {p!r}; wanted a pattern like '*.mlp.*' or '/mlp|norm/'")
        if len(p) > 1 and p[0] == p[-1] == "/":
            try:
                re.compile(p[1:-1])
            except re.error as e:
                raise CommonweightError(f"{where}: {p} is not a regular expression: {e}") from None
    return Select(tuple(patterns), () if layers is None else ranges(where, layers))


def ranges(where: str, layers: Any) -> tuple[tuple[int, int], ...]:
    """(first, last) of each: from a number, "0-3,8", or a list of such."""
    out = []
    for part in layers if isinstance(layers, list) and layers else str(layers).split(","):
        found = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", str(part))
        if not found or int(found[2] or found[1]) < int(found[1]):
            raise CommonweightError(
                f"{where}: layers is {layers!r}; wanted ranges like 0-11 or 0-3,8, both ends included"
            )
        out.append((int(found[1]), int(found[2] or found[1])))
    return tuple(out)


def first(scopes: Sequence[Mapping[str, Any]], key: str, name: str, t: float) -> Any:
    """The value of the first scope that says something."""
    return next((v for s in scopes if (v := value(s.get(key), name, t)) is not None), None)
