"""The result's config.json: the lead's, with what the merge changes. It is read, and fails, before any work."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...core import CommonweightError
from ..schema.types import DTYPES
from ..sources.source import config_of
from ..stream.work import Task

FILE = "config.json"
_LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
_DTYPE = ("dtype", "torch_dtype")
_KINDS = ("layer_types", "mlp_layer_types", "no_rope_layers", "layers_block_type")  # an entry for each layer
_NUMBERS = ("mlp_only_layers",)  # layers by their numbers
_TEXT = "text_config"
_QUANTISED = "quantization_config"  # goes: the result is not quantised, whatever was read


def read(lead: Path) -> dict[str, Any] | None:
    """None where there is none. Raises: CommonweightError for one that is damaged, or no names and values."""
    return config_of(lead) if (lead / FILE).is_file() else None


def made(
    found: Mapping[str, Any], tasks: Iterable[Task], blocks: Sequence[int] | None, rows: int | None
) -> dict[str, Any]:
    """blocks: which of the lead's each of the result's is, where they are not the same; rows: of the embedding. The
    dtype is that of most of the numbers. The part for the text, where a model has others, is changed alike.

    Raises: CommonweightError for blocks of which a list in the config says nothing.
    """
    changed: dict[str, Any] = {} if (dtype := _most(tasks)) is None else dict.fromkeys(_DTYPE, dtype)
    if rows is not None:
        changed["vocab_size"] = rows
    out = {k: v for k, v in _part(found, changed, blocks).items() if k != _QUANTISED}
    if isinstance(text := out.get(_TEXT), Mapping):
        out[_TEXT] = _part(text, changed, blocks)
    return out if rows is None else {**out, "vocab_size": rows}


def _part(found: Mapping[str, Any], changed: Mapping[str, Any], blocks: Sequence[int] | None) -> dict[str, Any]:
    out = {k: changed.get(k, v) for k, v in found.items()}
    if blocks is None:
        return out
    for key, value in found.items():
        if key in _LAYERS:
            out[key] = len(blocks)
        elif key in _KINDS and isinstance(value, list) and value:
            if max(blocks) >= len(value):
                raise CommonweightError(
                    f"{FILE}: {key} has {len(value)} entries, a slice has layer {max(blocks)}; give the deepest "
                    "model as base, or first"
                )
            out[key] = [value[b] for b in blocks]
        elif key in _NUMBERS and isinstance(value, list):
            out[key] = [i for i, b in enumerate(blocks) if b in value]
    return out


def _most(tasks: Iterable[Task]) -> str | None:
    count: dict[str, int] = {}
    names = {d: n for n, d in DTYPES.items()}
    for t in tasks:
        if t.dtype in names:
            count[names[t.dtype]] = count.get(names[t.dtype], 0) + t.numel
    return max(count, key=lambda n: count[n], default=None)
