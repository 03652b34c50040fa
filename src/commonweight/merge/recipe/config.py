"""The result's config.json: the lead's, with what the merge changes. It is read, and fails, before any work."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..source import config_of
from ..stream.work import Task
from .types import DTYPES

FILE = "config.json"
_LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
_DTYPE = ("dtype", "torch_dtype")
_QUANTISED = "quantization_config"  # goes: the result is not quantised, whatever was read


def read(lead: Path) -> dict[str, Any] | None:
    """None where there is none. Raises: CommonweightError for one that is damaged, or no names and values."""
    return config_of(lead) if (lead / FILE).is_file() else None


def made(found: Mapping[str, Any], tasks: Iterable[Task], blocks: int | None, rows: int | None) -> dict[str, Any]:
    """blocks, rows of the embedding: where they are not the lead's. The dtype is that of most of the numbers."""
    changed: dict[str, Any] = {}
    if (dtype := _most(tasks)) is not None:
        changed |= dict.fromkeys(_DTYPE, dtype)
    if blocks is not None:
        changed |= dict.fromkeys(_LAYERS, blocks)
    out = {k: changed.get(k, v) for k, v in found.items() if k != _QUANTISED}
    return out if rows is None else {**out, "vocab_size": rows}


def _most(tasks: Iterable[Task]) -> str | None:
    count: dict[str, int] = {}
    names = {d: n for n, d in DTYPES.items()}
    for t in tasks:
        if t.dtype in names:
            count[names[t.dtype]] = count.get(names[t.dtype], 0) + t.numel
    return max(count, key=lambda n: count[n], default=None)
