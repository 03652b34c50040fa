"""YAML files with the line of every key, for errors. Needs neither torch nor transformers."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..core import CommonweightError, unknown
from ..core.readable import Lines, read_text, read_yaml
from .rows import KINDS


def shown(value: Any) -> str:
    """A value for an error: aliases make one that is far longer than the file, so it is cut before it is written."""
    short = reprlib.Repr()
    short.maxlevel, short.maxdict, short.maxlist = 3, 5, 5
    short.maxstring = short.maxother = short.maxlong = 60
    return short.repr(value)


class Place:
    """Where in the file: for errors."""

    def __init__(self, path: Path, lines: Lines):
        self.path, self.lines = path, lines

    def told(self, keys: tuple[str, ...]) -> str:
        line = next((self.lines[keys[:n]] for n in range(len(keys), -1, -1) if keys[:n] in self.lines), 1)
        return f"{self.path}, line {line}" + (f": {'.'.join(keys)}" if keys else "")

    def error(self, keys: tuple[str, ...], what: str) -> CommonweightError:
        return CommonweightError(f"{self.told(keys)}: {what}")

    def keys(self, keys: tuple[str, ...], body: Mapping[str, Any], known: Iterable[str]) -> None:
        known = list(known)
        for key in body:
            if key not in known:
                raise self.error((*keys, str(key)), str(unknown("key", str(key), known)))

    def kind(self, body: Mapping[str, Any], key: str, wanted: Any, told: str) -> None:
        if key in body and not isinstance(body[key], wanted):
            raise self.error((key,), f"is {shown(body[key])}; wanted {told}")


def path_from(folder: Path, name: str) -> str:
    """From the file's folder; a data set of the hub has no file type."""
    there = folder / name
    saved = folder / name.rpartition(":")[0] if ":" in name else there  # FOLDER:SPLIT
    return str(there) if there.exists() or saved.is_dir() or Path(name).suffix.lower() in KINDS else name


def parse(path: Path, among: str) -> tuple[dict[str, Any], Lines]:
    """(what the file says, the line of every key). among: a key that belongs there, for the error of another file."""
    lines: Lines = {}
    body = read_yaml(read_text(path), path, lines=lines)
    if not isinstance(body, dict):
        raise CommonweightError(f"{path}: wanted keys and values, {among} among them")
    return body, lines
