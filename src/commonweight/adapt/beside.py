"""What a run is told of weights that a tenant holds beside its method."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ..core import CommonweightError

ADDED = "added"  # the entries of the tokenizer that the base has not
MOST = 1 << 20  # rows that a range may name


def modules(value: str | Sequence[str] | None) -> list[str] | None:
    """Names of modules from ``"embed_tokens,lm_head"``, or a list of them."""
    if value is None:
        return None
    names = re.split(r"[,|]", value) if isinstance(value, str) else [*value]
    if not names or not all(isinstance(n, str) and n.strip() for n in names):
        raise CommonweightError(f"modules_to_save: {value!r}; wanted names of modules, as in embed_tokens,lm_head")
    return [n.strip() for n in names]


def rows(value: str | Sequence[int] | Mapping[str, Any] | None) -> Any:
    """Numbers of entries from ``"5,7,32000-32003"``, or a list of them; {name of a table or head: either}; ``"added"``
    stays."""
    if value == ADDED:
        return value
    if isinstance(value, Mapping):
        return {str(k): rows(v) for k, v in value.items()}
    if value is None or (not isinstance(value, str) and isinstance(value, Sequence) and all(map(_number, value))):
        return value
    out: list[int] = []
    for part in str(value).split(","):
        found = re.fullmatch(r"\s*(\d{1,9})(?:\s*-\s*(\d{1,9}))?\s*", part)
        first, last = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
        if not 0 <= last - first < MOST:
            raise CommonweightError(f"token_rows: {value!r}; wanted numbers, as in 5,7,32000-32003, or added")
        out += range(first, last + 1)
    return out


def _number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
