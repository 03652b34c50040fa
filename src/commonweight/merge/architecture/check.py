"""Whether a config describes a result: its model, made without weights, is held against names and shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ...core import counted
from .blank import Loaded, blank, loaded
from .blocks import differ, features
from .resized import Block
from .stacks import Stack, place

Shapes = Mapping[str, tuple[int, ...]]


class Model(NamedTuple):
    """A model on the disk: its config, and its tensors' shapes."""

    config: Mapping[str, Any]
    shapes: Shapes


def news(result: Model, lead: Model) -> Loaded:
    """What does not fit of the result, but for what does not fit of the lead either. Raises: NoModel."""
    now, was = loaded(result.config, result.shapes), loaded(lead.config, lead.shapes)
    return Loaded(*(frozenset(n for n in a if _kind(n) not in {_kind(o) for o in b}) for a, b in zip(now, was)))


def _kind(name: str) -> str:
    """The name without the block's number: what one layer of a model lacks, none of them is expected to have."""
    at = place(name)
    return name if at is None else f"{at[0]}*{name[len(at[0]) + len(str(at[1])) :]}"


def told(found: Loaded) -> str:
    """Counts and a name of each sort."""
    said = ("are missing", found.missing), ("have no place", found.unexpected), ("have another shape", found.mismatched)
    return ", ".join(f"{counted(len(n), 'tensor')} {what} ({min(n)})" for what, n in said if n)


def otherwise(config: Mapping[str, Any], stacks: Sequence[Stack], blocks: Sequence[Block]) -> list[tuple[int, str]]:
    """(block of the result, what its config makes otherwise there than the model that it is from). Raises: NoModel."""
    made = blank(config)
    own: dict[tuple[int, str], Any] = {}
    out = []
    for stack in stacks:
        for b in blocks:
            if (key := (id(b.config), stack.module)) not in own:
                own[key] = features(blank(b.config), stack.module, 1 + max(x.number for x in blocks))
        here = features(made, stack.module, len(blocks))
        for i, b in enumerate(blocks):
            if found := differ(own[id(b.config), stack.module][b.number], here[i]):
                out.append((i, found[0]))
    return out
