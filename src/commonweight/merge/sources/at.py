"""Where a tensor lies: in its model, and in the model's blocks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from ..architecture.stacks import lengths, place


class At(NamedTuple):
    """Where a piece lies: its tensor, its first element in that tensor, and that tensor's first element in the model.

    The model is its tensors one after the other, sorted by name. depth: (block, number of blocks), outside of blocks
    none.
    """

    name: str
    shape: tuple[int, ...]
    start: int = 0
    offset: int = 0
    depth: tuple[int, int] | None = None


def block(name: str) -> int | None:
    """The number of the block that a tensor belongs to: the first number that stands alone between dots."""
    at = place(name)
    return None if at is None else at[1]


def depths(names: Iterable[str]) -> dict[str, tuple[int, int] | None]:
    """Name -> (block, number of blocks) in its own stack, as the names say; outside of blocks none."""
    found = {n: place(n) for n in names}
    blocks = lengths(found)
    return {n: None if at is None else (at[1], blocks[at[0]]) for n, at in found.items()}


def places(shapes: Mapping[str, tuple[int, ...]], blocks: Mapping[str, int] | None = None) -> dict[str, At]:
    """Every tensor's place in the model, sorted by name. blocks: how many each stack has; none: as the names say."""
    blocks = lengths(shapes) if blocks is None else blocks
    out, offset = {}, 0
    for name in sorted(shapes):
        at = place(name)
        out[name] = At(name, shapes[name], 0, offset, None if at is None else (at[1], blocks[at[0]]))
        offset += math.prod(shapes[name])
    return out
