"""Sites by the block of the model that they lie in, and the heads and neurons in front of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from ..core import CommonweightError, Site, fits

_BLOCK = re.compile(r"(?:[^.]+\.)*?\d+(?:\.\d+)*(?=\.)")  # up to the first run of numbers: layer.3, blocks.5.0


def by_block(sites: Sequence[Site]) -> list[list[Site]]:
    """Sites of each numbered block, in the order of the model; blocks without a weight but a norm's are left out. Of
    sites outside of all such blocks, where there are no others, one block."""
    found: dict[str, list[Site]] = {}
    for s in sites:
        if at := _BLOCK.match(s.name):
            found.setdefault(at.group(), []).append(s)
    return [b for b in found.values() if any(s.kind != "norm" for s in b)] or [[*sites]]


def headed(config: Any, sites: Sequence[Site], heads: Callable[[Site], int]) -> Any:
    """A config with the heads of each attention as the model says them, where nobody has said them: `heads`, one number
    for all, or `told`, (site, heads) pairs. heads: in front of an attention's output layer."""
    at = {s.name: heads(s) for s in sites if s.role == "attn_out"}
    if config.heads is not None or config.told or not at:
        return config
    if len({*at.values()}) == 1:
        return replace(config, heads=next(iter(at.values())))
    return replace(config, told=tuple(at.items()))


def heads_at(config: Any, site: Site) -> int:
    """Heads in front of an attention's output layer, 0 where they are not known. Without a model, in plans and in older
    files, one for 64 numbers.

    Raises: CommonweightError for a number that does not divide the width."""
    said = next((n for p, n in config.told if fits(site.name, p)), config.heads)
    if said is None:
        return 0 if site.inp % 64 else site.inp // 64
    if said and site.inp % said:
        raise CommonweightError(
            f"{site.name}: its width {site.inp} is not a multiple of heads={said}; say how many heads the model's "
            "attention has"
        )
    return said


def parts(site: Site, config: Any) -> int:
    """Equal parts of what a site is given that can be left out: a neuron each in front of the second feed-forward
    layer, a head each in front of an attention's output layer; 0 elsewhere."""
    if site.role == "down":
        return site.inp
    return heads_at(config, site) if site.role == "attn_out" else 0
