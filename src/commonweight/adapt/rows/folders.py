"""Folders of images or sounds, one folder a class, as `datasets`' imagefolder and audiofolder have them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from ...core import CommonweightError, counted, unknown
from .columns import Row

FILES = {
    "image": {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"},
    "audio": {".wav", ".flac", ".ogg", ".mp3", ".aiff", ".aif", ".opus"},
}
_TRAIN, _SPLITS = "train", ("train", "validation", "valid", "val", "dev", "test")
_ALSO = {"validation": ("valid", "val", "dev")}


def sense_of(folder: Path) -> str | None:
    """image or audio, by the first such file within; None where there is none. Cost: looks at names until then."""
    for path in _files(folder):
        if (kind := _kind(path)) is not None:
            return kind
    return None


def read_senses(folder: Path, split: str, say: Callable[[str], None] | None = None, named: bool = False) -> list[Row]:
    """{"image" or "audio": the file's path, "label": the name of its class} of every file, in the order of names.

    A file lies in ``CLASS/``, or in ``SPLIT/CLASS/`` where there is a folder `train`, or none but splits, at any depth.
    Files of other kinds are left out, which `say` is told, and all that is hidden (``.name``). named: somebody asked
    for this split, so that a folder without splits will not do. Raises: CommonweightError for a file in no class, for
    images beside sounds, and for a split that is not there.
    """
    within = [p.name for p in sorted(folder.iterdir()) if p.is_dir() and not p.name.startswith(".")]
    splits = [name for name in within if name in _SPLITS]
    if _TRAIN not in splits and splits != within:
        splits = []
    home = folder
    if splits or named:
        found = next((s for s in (split, *_ALSO.get(split, ())) if s in splits), None)
        if found is None:
            hint = f"name it as {folder}:SPLIT" if splits else "it has folders of classes alone"
            raise unknown("split", split, splits, f"of {folder}; {hint}")
        home = folder / found
    rows: list[Row] = []
    other = []
    for path in sorted(_files(home)):
        if (kind := _kind(path)) is None:
            other.append(path)
            continue
        if path.parent == home:
            raise CommonweightError(
                f"{path}: stands in no folder of a class; wanted {home.name}/CLASS/{path.name}, a folder for each class"
            )
        if rows and kind not in rows[0]:
            raise CommonweightError(f"{path}: {kind} beside {next(iter(rows[0]))} in one folder; train them apart")
        rows.append({kind: str(path), "label": path.relative_to(home).parts[0]})
    if other and say is not None:
        more = ", ..." if other[1:] else ""
        say(f"notice: {home}: left out {counted(len(other), 'file')} of other kinds ({other[0].name}{more})")
    return rows


def _files(home: Path) -> Iterator[Path]:
    """At any depth; neither hidden ones nor what lies in hidden folders."""
    for path in home.rglob("*"):
        if not any(part.startswith(".") for part in path.relative_to(home).parts) and path.is_file():
            yield path


def _kind(path: Path) -> str | None:
    return next((k for k, ends in FILES.items() if path.suffix.lower() in ends), None)
