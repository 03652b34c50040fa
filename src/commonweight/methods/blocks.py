"""Sites by the block of the model that they lie in."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..core import Site

_BLOCK = re.compile(r"(?:[^.]+\.)*?\d+(?:\.\d+)*(?=\.)")  # up to the first run of numbers: layer.3, blocks.5.0


def by_block(sites: Sequence[Site]) -> list[list[Site]]:
    """Sites of each numbered block, in the order of the model; blocks without a weight but a norm's are left out. Of
    sites outside of all such blocks, where there are no others, one block."""
    found: dict[str, list[Site]] = {}
    for s in sites:
        if at := _BLOCK.match(s.name):
            found.setdefault(at.group(), []).append(s)
    return [b for b in found.values() if any(s.kind != "norm" for s in b)] or [[*sites]]
