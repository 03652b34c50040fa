"""Where a run writes, looked at before anything is loaded. Needs neither torch nor transformers."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from ..core import CommonweightError
from ..formats import atomic


def out_path(out: str | Path, overwrite: bool = False) -> Path:
    """The tenant's file, if it can be written. overwrite: also where one is. Raises: CommonweightError before anything
    is trained."""
    path = Path(out)
    if path.is_dir():
        raise CommonweightError(f"--out {out} is a folder; wanted the name of a file, ending in .safetensors")
    if path.suffix != ".safetensors":
        raise CommonweightError(f"--out {out}: wanted a name like {path.stem}.safetensors")
    atomic.free(path, "--out", overwrite=overwrite)
    atomic.free(path.with_suffix(".json"), "--out", overwrite=overwrite, what="the file of its report")
    return path


def out_folder(out: str | Path, names: Collection[str], overwrite: bool = False) -> Path:
    """A folder for several tenants' files, which may not be there yet."""
    path = Path(out)
    if path.suffix == ".safetensors" or path.is_file():
        raise CommonweightError(f"--out {out}: several tenants are written to a folder; name one")
    for name in (*(f"{n}.safetensors" for n in names), "report.json"):
        atomic.free(path / name, "--out", overwrite=overwrite)
    return path
