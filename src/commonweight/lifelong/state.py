"""What was carried over, on disk: one safetensors file for tensors and facts, one of lines for rows."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..adapt.tasks.base import Example
from ..core import CommonweightError
from ..core.schedule import NONE
from ..formats import atomic

Rows = Mapping[str, Sequence[Example]]


def lines(rows: Rows) -> bytes:
    """A line of JSON for each row, with its task."""
    each = [json.dumps({"task": name, **row}) for name, kept in rows.items() for row in kept]
    return "".join(f"{one}\n" for one in each).encode()


def write(folder: Path, stage: int, tensors: Mapping[str, Tensor], facts: Mapping[str, Any], rows: Rows) -> int:
    """Whole or not at all, each of the two files. Gives their bytes."""
    held = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
    data = save(held, {"facts": json.dumps(dict(facts))})
    atomic.write(folder / f"carried-{stage}.safetensors", data)
    text = lines(rows)
    if text:
        atomic.write(folder / f"memory-{stage}.jsonl", text)
    return len(data) + len(text)


def there(folder: Path, stage: int) -> bool:
    """Whether what a stage carried over is still there."""
    return (folder / f"carried-{stage}.safetensors").is_file()


def read(
    folder: Path, stage: int, kept: Mapping[str, int] = NONE
) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, list[Example]]]:
    """kept: how many rows of each task the record says that there are.

    Raises: CommonweightError for a file that is not whole, or lacks rows."""
    path = folder / f"carried-{stage}.safetensors"
    memory = folder / f"memory-{stage}.jsonl"
    rows: dict[str, list[Example]] = {}
    try:
        with safe_open(path, "pt") as f:
            tensors = {k: f.get_tensor(k) for k in f.keys()}
            facts = json.loads((f.metadata() or {})["facts"])
        path = memory
        for line in memory.read_text("utf-8").splitlines() if memory.is_file() or any(kept.values()) else ():
            row = json.loads(line)
            rows.setdefault(row.pop("task"), []).append(row)
        if lost := [n for n, many in kept.items() if len(rows.get(n, ())) != many]:
            raise ValueError(f"{len(rows.get(lost[0], ()))} rows of {lost[0]}, where {kept[lost[0]]} were written")
        return tensors, facts, rows
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        raise CommonweightError(
            f"{path}: what the stream carried over is damaged ({e}); start it again in another store"
        ) from e


def drop(folder: Path, before: int) -> None:
    """What no stage from `before` on needs."""
    for path in (*folder.glob("carried-*.safetensors"), *folder.glob("memory-*.jsonl")):
        number = path.stem.rpartition("-")[2]
        if number.isdecimal() and int(number) < before:
            path.unlink(missing_ok=True)
