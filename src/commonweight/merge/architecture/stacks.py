"""Stacks of blocks: which a file has, where its config says how deep they are, and which of them slices are of."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from copy import deepcopy
from functools import lru_cache
from typing import Any, NamedTuple

from .blank import NoModel, blank, known, numbered
from .naming import homes

_NUMBER = re.compile(r"(?:^|(?<=\.))\d+(?=\.)")
_DEPTH = re.compile(r"layer|depth|block", re.IGNORECASE)


class Stack(NamedTuple):
    """prefix: of its tensors' names in a file, up to the block's number. part, key: the config says by key, in this
    part of it, how many blocks there are. module: the list in the model of transformers."""

    prefix: str
    length: int
    part: tuple[str, ...]
    key: str
    module: str


def place(name: str) -> tuple[str, int] | None:
    """(prefix, number of the block) of a tensor: at the first number that stands alone between dots."""
    found = _NUMBER.search(name)
    return (name[: found.start()], int(found[0])) if found else None


def lengths(names: Iterable[str]) -> dict[str, int]:
    """Prefix -> how many blocks have tensors there, by their highest number."""
    out: dict[str, int] = {}
    for at in map(place, names):
        if at is not None:
            out[at[0]] = max(out.get(at[0], 0), at[1] + 1)
    return out


def part_of(config: Mapping[str, Any], part: Iterable[str]) -> Any:
    for key in part:
        found = config.get(key)
        config = found if isinstance(found, Mapping) else {}
    return config


def stacks(config: Mapping[str, Any], names: Iterable[str]) -> tuple[Stack, ...]:
    """The stacks of a file of these tensors whose depth the config says. Raises: NoModel."""
    return _stacks(json.dumps(config, sort_keys=True), tuple(sorted(names)))


@lru_cache(8)
def _stacks(text: str, names: tuple[str, ...]) -> tuple[Stack, ...]:
    config = json.loads(text)
    model = blank(config)
    lists = numbered(model)
    prefixes: dict[str, list[str]] = {}
    for name, home in homes(model, names).items():
        mine, theirs = place(name), place(home.module)
        if mine is None or theirs is None or mine[1] != theirs[1]:
            continue
        at = prefixes.setdefault(theirs[0].rstrip("."), [])
        if mine[0] not in at:
            at.append(mine[0])
    told = _told(config, {m: n for m, n in lists.items() if m in prefixes})
    return tuple(Stack(p, lists[m], *told[m], m) for m in told for p in prefixes[m])


def _told(config: dict[str, Any], lists: Mapping[str, int]) -> dict[str, tuple[tuple[str, ...], str]]:
    """List of modules -> where the config says its length: by what a model of one more there has."""
    out: dict[str, tuple[tuple[str, ...], str]] = {}
    full = known(config).to_dict()
    for part, key, n in sorted(_numbers(full), key=lambda x: not _DEPTH.search(x[1])):
        if not any(n == length for m, length in lists.items() if m not in out):
            continue
        try:
            other = numbered(blank(_longer(config, part, key, n)))
        except NoModel:
            continue
        out.update({m: (part, key) for m, length in lists.items() if length == n and other.get(m) == n + 1})
    return out


def _numbers(config: Mapping[str, Any], part: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], str, int]]:
    out = []
    for key, value in config.items():
        if isinstance(value, Mapping):
            out += _numbers(value, (*part, key))
        elif type(value) is int and value > 0 and "token" not in key and "vocab" not in key:
            out.append((part, key, value))
    return out


def _longer(config: Mapping[str, Any], part: tuple[str, ...], key: str, n: int) -> dict[str, Any]:
    """With one more there, and in every list that has an entry for each."""
    out: Any = deepcopy(dict(config))
    at = out
    for step in part:
        at = at.setdefault(step, {})
    for other, value in at.items():
        if isinstance(value, list) and len(value) == n:
            at[other] = [*value, value[-1]]
        elif isinstance(value, str) and "pattern" in other and len(value) == n:
            at[other] = value + value[-1]
    at[key] = n + 1
    return out


def text_part(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The part of a config that is the language model's; () where it is no part of its own. Raises: NoModel."""
    whole = known(config)
    for how in ({"decoder": True}, {}):
        try:
            text = whole.get_text_config(**how)
        except (ValueError, TypeError, AttributeError):
            continue
        if (found := _path(whole, text)) is not None:
            return found
    return ()


def _path(config: Any, wanted: Any, part: tuple[str, ...] = (), depth: int = 3) -> tuple[str, ...] | None:
    if config is wanted:
        return part
    if depth:
        for key, value in vars(config).items():
            if hasattr(value, "model_type") and hasattr(value, "to_dict"):
                if (found := _path(value, wanted, (*part, key), depth - 1)) is not None:
                    return found
    return None
