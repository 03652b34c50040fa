"""Whether a folder is what a merge would make: for a --resume whose merge had ended."""

from __future__ import annotations

import json
from pathlib import Path

from ..plan.built import Built
from ..sources.model import open_source
from .folder import Result, key, stamps
from .place import RECORD


def finished(built: Built, out: Path) -> Result | None:
    """The result, where `out` was made by this recipe with these options and statistics, from files of these sizes
    and times, and has all its tensors; else None, as for tenants in a store, which may be published anew.
    Cost: headers; no input is read again."""
    try:
        record = json.loads((out / RECORD).read_text(encoding="utf-8"))
        there = open_source(out, "the result")
        now = stamps(built)
    except (OSError, ValueError):
        return None
    wanted = {t.at.name: (t.at.shape, t.dtype) for t in built.tasks}
    if not isinstance(record, dict) or any(getattr(s, "stored", False) for s in built.sources.values()):
        return None
    if [record.get(k) for k in ("recipe", "merge", "files")] != [built.recipe.text, key(built), now]:
        return None
    if {n: (s, there.dtypes[n]) for n, s in there.shapes.items()} != wanted:
        return None
    return Result(out, len(wanted), len(wanted), sum(f.stat().st_size for f in there.files))
