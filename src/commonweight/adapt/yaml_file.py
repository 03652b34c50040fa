"""YAML files with the line of every key, for errors. Needs neither torch nor transformers."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..core import CommonweightError, first_line, unknown
from .rows import KINDS

Lines = dict[tuple[str, ...], int]
MOST = 100_000  # values of a file, its aliases written out


def shown(value: Any) -> str:
    """A value for an error: aliases make one that is far longer than the file, so it is cut before it is written."""
    short = reprlib.Repr()
    short.maxlevel, short.maxdict, short.maxlist = 3, 5, 5
    short.maxstring = short.maxother = short.maxlong = 60
    try:
        return short.repr(value)
    except ValueError:  # Python does not write out a number of over 4,300 digits
        return "a number of thousands of digits"


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
    import yaml

    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise CommonweightError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as e:
        raise CommonweightError(f"{path}: cannot be read: {e}") from e
    lines: Lines = {}
    try:
        loader = _loader()
        node = yaml.compose(text, loader)
        if node is not None:
            if _count(node, {}) > MOST:
                raise CommonweightError(f"{path}: its aliases (*name) make more than {MOST:,} values of it")
            _lines(path, node, (), lines)
        body = yaml.load(text, loader)
    except RecursionError:
        raise CommonweightError(f"{path}: not valid YAML: too many lists and keys inside each other") from None
    except yaml.YAMLError as e:
        mark = getattr(e, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise CommonweightError(f"{path}{line}: not valid YAML: {getattr(e, 'problem', None) or e}") from None
    if not isinstance(body, dict):
        raise CommonweightError(f"{path}: wanted keys and values, {among} among them")
    return body, lines


def _loader() -> type:
    """YAML's safe loader, for which 2e-3 is a number as in YAML 1.2; in 1.1 it is a text."""
    import yaml

    class Loader(yaml.SafeLoader):
        def construct_object(self, node: Any, deep: bool = False) -> Any:
            """What looks like a date, a number or binary and is none (2026-13-45) is an error of its place."""
            try:
                return super().construct_object(node, deep)
            except (yaml.YAMLError, CommonweightError, RecursionError):
                raise
            except Exception as e:
                shown = repr(getattr(node, "value", ""))[:60]
                raise yaml.constructor.ConstructorError(
                    None,
                    None,
                    f"{shown} cannot be read ({first_line(e)}); a text stands in quotation marks",
                    node.start_mark,
                ) from e

    number = re.compile(r"[-+]?[0-9]+[eE][-+]?[0-9]+$")
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", number, [*"-+0123456789"])
    return Loader


def _count(node: Any, known: dict[int, float]) -> float:
    """Values in a node when every alias in it is written out; infinity for one that holds itself."""
    if id(node) in known:
        return known[id(node)]
    known[id(node)] = float("inf")
    inner = [n for pair in node.value for n in pair] if node.id == "mapping" else node.value
    known[id(node)] = 1.0 if node.id == "scalar" else 1.0 + sum(_count(n, known) for n in inner)
    return known[id(node)]


def _lines(path: Path, node: Any, here: tuple[str, ...], out: Lines) -> None:
    """Line of every key. Raises for a key that is twice there, of which YAML's reader would take the last."""
    if node.id == "mapping" and len(here) < 3:
        for key, value in node.value:
            at = (*here, str(key.value))
            if at in out:
                raise CommonweightError(
                    f"{path}, line {key.start_mark.line + 1}: {'.'.join(at)} appears twice, first in line {out[at]}"
                )
            out[at] = key.start_mark.line + 1
            _lines(path, value, at, out)
