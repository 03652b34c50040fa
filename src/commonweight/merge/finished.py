"""Whether a folder is what a merge would make: for a --resume whose merge had ended."""

from __future__ import annotations

import json
from pathlib import Path

from ..core import CommonweightError
from .folder import RECORD, Result
from .recipe.build import Built
from .source import open_source


def finished(built: Built, out: Path) -> Result | None:
    """The result, where `out` was made by this recipe from models of these names, has all its tensors, and is newer
    than every model; else None. Cost: headers; no input is read again."""
    try:
        made = (out / RECORD).stat().st_mtime_ns
        record = json.loads((out / RECORD).read_text(encoding="utf-8"))
        there = open_source(out, "the result")
        newer = any(f.stat().st_mtime_ns > made for s in built.sources.values() for f in s.files)
    except (OSError, ValueError, CommonweightError):
        return None
    wanted = {t.at.name: (t.at.shape, t.dtype) for t in built.tasks}
    same = isinstance(record, dict) and record.get("recipe") == built.recipe.text
    if newer or not same or record.get("inputs", {}).keys() != built.sources.keys():
        return None
    if {n: (s, there.dtypes[n]) for n, s in there.shapes.items()} != wanted:
        return None
    return Result(out, len(wanted), len(wanted), sum(f.stat().st_size for f in there.files))
