"""The folder of a store: what it must hold to be one, and how it is made."""

from __future__ import annotations

import json
import os
from pathlib import Path

from ..core import CommonweightError
from ..formats import atomic
from . import blueprint, index

FORMAT = 2
STORE = b'{"commons":"commonweight","format":2}\n'
BEFORE = b'{"commons":"commonweight","format":1}\n'  # a store of old: the first publish makes it one of this format


def can_be_made(folder: Path) -> None:
    """Raises: CommonweightError where a folder is something else, or cannot be written."""
    if folder.exists() and not folder.is_dir():
        raise CommonweightError(f"{folder} is a file; a store is a folder")
    atomic.free(folder / "store.json", "store", overwrite=True)
    # of another process that makes it, or was killed doing so
    ours = ("lock", "pools", blueprint.FOLDER, "tenants", "store.json", index.FILE)
    there = os.listdir(folder) if folder.exists() else []
    strange = [n for n in there if n not in ours and not n.startswith(".store.json.")]
    if strange:
        raise CommonweightError(f"{folder} is not a store and holds {min(strange)}; name a new or an empty folder")


def make(folder: Path) -> None:
    atomic.make_folder(folder)
    for part in ("pools", blueprint.FOLDER, "tenants"):
        (folder / part).mkdir(exist_ok=True)
    atomic.write(folder / "store.json", STORE)  # last: a folder without it is not a store yet
    atomic.sync(folder.absolute().parent)


def look(folder: Path) -> None:
    """Raises: CommonweightError for what is no store, and for one of a newer version."""
    at = folder / "store.json"
    try:
        raw = at.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise CommonweightError(f"{folder} is not a store; `commonweight store init` makes one") from None
    if raw in (STORE, BEFORE):
        return
    try:
        version = json.loads(raw)["format"]
    except (ValueError, KeyError, TypeError):
        version = None
    if isinstance(version, int) and version > FORMAT:
        raise CommonweightError(
            f"{folder}: a store of format {version}; this version reads up to {FORMAT}: upgrade commonweight"
        )
    raise CommonweightError(f"{at}: altered; it must read {STORE.decode().strip()}")
