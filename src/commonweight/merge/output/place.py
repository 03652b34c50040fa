"""Where a merge is written, looked at before its work. Needs no torch."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ...core import CommonweightError
from ...formats import atomic

RECORD = "merge.json"
MARKS = ("config.json", RECORD, "model.safetensors", "model.safetensors.index.json")  # one is in a model's folder


def model_folder(out: Path, overwrite: bool = False, read: Iterable[Path] = ()) -> Path:
    """The folder of the merged model. overwrite: also where a model is. read: what must not go with it.

    Raises: CommonweightError where something is, unless `overwrite`; where a folder is that is no model's; and where it
    holds what is read for the merge.
    """
    if not (out.exists() or out.is_symlink()):
        return out
    if not overwrite:
        raise atomic.taken(out)
    real = atomic.folder_for(out, MARKS, "model's folder", overwrite=True)
    for path in read:
        if path.resolve().is_relative_to(real):
            raise CommonweightError(f"{out}: holds {path}, which is read for the merge; choose another name")
    return real
