"""The result's config.json: the lead's, with what the merge changes. It is read, and fails, before any work."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..architecture.blank import CONFIG
from ..architecture.resized import Block, resized
from ..architecture.stacks import Stack
from ..schema.types import DTYPES
from ..sources.source import config_of
from ..stream.work import Task
from .frame import Frame

_LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")  # where no model tells which key it is
_DTYPE = ("dtype", "torch_dtype")
_TEXT = "text_config"
_QUANTISED = "quantization_config"  # goes: the result is not quantised, whatever was read
_TIED = "tie_word_embeddings"


def read(lead: Path) -> dict[str, Any] | None:
    """None where there is none. Raises: CommonweightError for one that is damaged, or no names and values."""
    return config_of(lead) if (lead / CONFIG).is_file() else None


def made(
    found: Mapping[str, Any],
    tasks: Iterable[Task],
    frame: Frame | None,
    blocks: Sequence[Block],
    rows: int | None,
    untied: bool,
) -> dict[str, Any]:
    """frame, blocks: of slices; rows: of the embedding, where it is mapped by token; untied: the result has a head of
    its own. The dtype is that of most of the numbers. The text part, where a model has several, is changed alike.

    Raises: CommonweightError for blocks of which a list in the config says nothing.
    """
    out = {k: v for k, v in found.items() if k != _QUANTISED}
    if frame is not None:
        out = resized(out, frame.stacks or _by_name(out, frame), blocks)
    changed: dict[str, Any] = {} if (dtype := _most(tasks)) is None else dict.fromkeys(_DTYPE, dtype)
    if rows is not None:
        changed["vocab_size"] = rows
    if untied:
        changed[_TIED] = False
    out |= {k: changed[k] for k in out.keys() & changed.keys()}
    text = out.get(_TEXT)
    if isinstance(text, Mapping):
        out[_TEXT] = {**text, **{k: changed[k] for k in text.keys() & changed.keys()}}
    return out | ({} if rows is None else {"vocab_size": rows}) | ({_TIED: False} if untied else {})


def _by_name(config: Mapping[str, Any], frame: Frame) -> list[Stack]:
    """Where the config says how many blocks, by the usual names of that."""
    out = []
    for part in ((), (_TEXT,)):
        at: Any = config.get(_TEXT) if part else config
        keys = [k for k in _LAYERS if isinstance(at, Mapping) and type(at.get(k)) is int]
        out += [Stack(p, at[k], part, k, "") for k in keys for p in frame.prefixes]
    return out


def _most(tasks: Iterable[Task]) -> str | None:
    count: dict[str, int] = {}
    names = {d: n for n, d in DTYPES.items()}
    for t in tasks:
        if t.dtype in names:
            count[names[t.dtype]] = count.get(names[t.dtype], 0) + t.numel
    return max(count, key=lambda n: count[n], default=None)
