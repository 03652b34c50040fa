"""Sites by the block of the model that they lie in, and the heads and neurons in front of them."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..core import CommonweightError, Site

_BLOCK = re.compile(r"(?:[^.]+\.)*?\d+(?:\.\d+)*(?=\.)")  # up to the first run of numbers: layer.3, blocks.5.0


def by_block(sites: Sequence[Site]) -> list[list[Site]]:
    """Sites of each numbered block, in the order of the model; blocks without a weight but a norm's are left out. Of
    sites outside of all such blocks, where there are no others, one block."""
    found: dict[str, list[Site]] = {}
    for s in sites:
        if at := _BLOCK.match(s.name):
            found.setdefault(at.group(), []).append(s)
    return [b for b in found.values() if any(s.kind != "norm" for s in b)] or [[*sites]]


def parts(site: Site, heads: int | None) -> int:
    """Equal parts of what a site is given that can be left out: a neuron each in front of the second feed-forward
    layer, a head each in front of an attention's output layer; 0 elsewhere. heads: None: one for 64 numbers."""
    if site.role == "down":
        return site.inp
    if site.role != "attn_out":
        return 0
    if heads is None:
        return 0 if site.inp % 64 else site.inp // 64
    if site.inp % heads:
        raise CommonweightError(
            f"{site.name}: its width {site.inp} is not a multiple of heads={heads}; say how many heads the model's "
            "attention has"
        )
    return heads
