"""Where a tensor lies: in its model, and in the model's blocks."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple


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
    found = re.search(r"(?:^|\.)(\d+)\.", name)
    return int(found[1]) if found else None


def depths(names: Iterable[str]) -> dict[str, tuple[int, int] | None]:
    """Name -> (block, number of blocks), as the names say; outside of blocks none."""
    found = {n: block(n) for n in names}
    blocks = 1 + max((b for b in found.values() if b is not None), default=-1)
    return {n: None if b is None else (b, blocks) for n, b in found.items()}


def places(shapes: Mapping[str, tuple[int, ...]], blocks: int | None = None) -> dict[str, At]:
    """Every tensor's place in the model, sorted by name. blocks: how many the model has; none: as the names say."""
    if blocks is None:
        blocks = 1 + max((b for b in map(block, shapes) if b is not None), default=-1)
    out, offset = {}, 0
    for name in sorted(shapes):
        b = block(name)
        out[name] = At(name, shapes[name], 0, offset, None if b is None else (b, blocks))
        offset += math.prod(shapes[name])
    return out
