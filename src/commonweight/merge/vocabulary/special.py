"""Tokens that a config names by their numbers (bos, eos, pad, image, ...), numbered in another vocabulary."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_NUMBERED = re.compile(r"(^|_)token_(id|ids|index)$|^(begin_)?suppress_tokens$")


def renumbered(
    config: Mapping[str, Any], old: Mapping[str, int], new: Mapping[str, int]
) -> tuple[dict[str, Any], list[str]]:
    """(config with the numbers that its tokens have in `new`, the keys of tokens that `new` has not: they stay)."""
    names = {i: t for t, i in old.items()}
    lost: list[str] = []

    def one(key: str, value: Any) -> Any:
        if isinstance(value, Mapping):
            return {k: one(k, v) for k, v in value.items()}
        if not _NUMBERED.search(key):
            return value
        if isinstance(value, list):
            return [one(key, v) for v in value]
        if type(value) is not int or value not in names:
            return value
        if names[value] not in new:
            lost.append(f"{key} ({names[value]!r})")
            return value
        return new[names[value]]

    return {k: one(k, v) for k, v in config.items()}, list(dict.fromkeys(lost))
