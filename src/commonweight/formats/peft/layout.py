"""Where adapters lie: one folder each, in one another, beside a training's checkpoints, in the hub's cache."""

from __future__ import annotations

import re
from pathlib import Path

from ...core import CommonweightError
from .folder import CONFIG


def found(given: Path) -> tuple[list[Path], list[Path]]:
    """(adapters in a folder, checkpoints in it that are left out).

    An adapter lies in the folder itself, in folders right inside it, and in folders right inside those that hold one:
    PEFT saves a model's second adapter in a folder in the first one's. ``checkpoint-100`` beside a finished adapter is
    an earlier state of it. A repository of the hub's cache stands for the snapshot that its ``refs/main`` names.
    Raises: CommonweightError when there is none.
    """
    if not given.is_dir():
        hint = (
            f"; to fetch it from the hub: hf download {given}" if re.fullmatch(r"[\w.-]+/[\w.-]+", str(given)) else ""
        )
        raise CommonweightError(f"{given}: no such folder; wanted a PEFT adapter, or a folder of them{hint}")
    top = snapshot(given)
    adapters: list[Path] = []
    left: list[Path] = []
    for folder in (top, *_inside(top)):
        if not _is_adapter(folder):
            continue
        adapters.append(folder)
        for inner in _inside(folder):
            if _is_adapter(inner):
                (left if re.fullmatch(r"checkpoint-\d+", inner.name) else adapters).append(inner)
    adapters = [f for f in dict.fromkeys(adapters) if f not in left]
    if not adapters:
        raise CommonweightError(f"{given}: holds no {CONFIG}, and no folder in it does; wanted PEFT adapters")
    return adapters, left


def snapshot(folder: Path) -> Path:
    """The snapshot of a repository in the hub's cache; any other folder is itself."""
    snapshots = folder / "snapshots"
    if _is_adapter(folder) or not folder.name.startswith("models--") or not snapshots.is_dir():
        return folder
    main = folder / "refs" / "main"
    if main.is_file() and (named := snapshots / main.read_text(encoding="utf-8").strip()).is_dir():
        return named
    there = _inside(snapshots)
    if len(there) != 1:
        raise CommonweightError(
            f"{snapshots}: holds {len(there)} snapshots and no refs/main says which; name one of them"
        )
    return there[0]


def title(folder: Path) -> str:
    """What an adapter is called: as its folder, or as its repository for a snapshot in the hub's cache."""
    whole = folder.resolve()
    if whole.parent.name == "snapshots" and whole.parent.parent.name.startswith("models--"):
        return whole.parent.parent.name.rsplit("--", 1)[-1]
    return whole.name


def _inside(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_dir())


def _is_adapter(folder: Path) -> bool:
    return (folder / CONFIG).is_file()
