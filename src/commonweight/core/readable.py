"""YAML and JSON of others, read within bounds: what a YAML says may be far larger than its text, by aliases."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .errors import CommonweightError, first_line

CHARACTERS = 500_000  # of a file
DEEPEST = 50  # brackets, or indents, within one another
CONFIG_BYTES = 1 << 24  # of a config; those of a large model with a rank for every layer have some 100 kB
ENTRIES = 100_000  # values, when every alias is written out
_INTEGER = 1 << 63  # as large as whole numbers may be

Lines = dict[tuple[str, ...], int]


def read_text(path: Path, what: str = "file") -> str:
    """Raises: CommonweightError for a file that is missing, no text, or longer than `CHARACTERS`."""
    try:
        if path.is_dir():
            raise CommonweightError(f"{path} is a folder; wanted a {what} in YAML")
        if path.stat().st_size > 4 * CHARACTERS:
            raise CommonweightError(
                f"{path}: has {path.stat().st_size:,} bytes; wanted at most {CHARACTERS:,} characters"
            )
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise CommonweightError(f"{path}: no such {what}") from None
    except (OSError, UnicodeDecodeError) as e:
        raise CommonweightError(f"{path}: cannot be read: {e}") from e


def read_object(path: Path, most: int = 1 << 30) -> dict[str, Any]:
    """What a file with one JSON object says. most: bytes that it may have.

    Raises: CommonweightError for a file that is missing, too large, no JSON, or something else than an object.
    """
    try:
        size = path.stat().st_size
        found = json.loads(path.read_text(encoding="utf-8")) if size <= most else None
    except (OSError, ValueError, RecursionError) as e:
        raise CommonweightError(
            f"{path}: not a whole JSON file, it cannot be read ({e}); download or copy it again"
        ) from e
    if size > most:
        raise CommonweightError(f"{path}: {size:,} bytes; a config has at most {most:,}")
    if not isinstance(found, dict):
        raise CommonweightError(f"{path}: holds a {type(found).__name__}; wanted a JSON object")
    return found


def read_yaml(text: str, where: str | Path, *, lines: Lines | None = None) -> Any:
    """Values of a YAML text, for which 2e-3 is a number as in YAML 1.2. where: how errors call it.

    lines: filled with the line of every key of the first three levels; then a key that is twice there is an error.
    Raises: CommonweightError, with the line, for what is no YAML or no value, for more than `CHARACTERS`, nested more
    than `DEEPEST` deep, with more than `ENTRIES` values when aliases (&x, *x) are written out, or that contains itself.
    """
    import yaml

    if len(text) > CHARACTERS:
        raise CommonweightError(f"{where}: has {len(text):,} characters; wanted at most {CHARACTERS:,}")
    try:
        loader = _loader()(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _counted(node, where)
        if lines is not None:
            _lines(where, node, (), lines)
        body = loader.construct_document(node)
    except yaml.YAMLError as e:
        mark = getattr(e, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise CommonweightError(f"{where}{line}: not valid YAML: {getattr(e, 'problem', None) or e}") from None
    within(body, where, lines)
    return body


def within(body: Any, where: str | Path, lines: Lines | None = None) -> None:
    """Raises: CommonweightError for values, from YAML or given, that contain themselves, are nested too deep, are more
    than `ENTRIES`, or are whole numbers beyond 64 bits. lines: of the keys, for the error."""
    left = [ENTRIES]

    def look(value: Any, at: tuple[str, ...], inside: tuple[int, ...]) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise CommonweightError(f"{where}: it has more than {ENTRIES:,} values; split it")
        if isinstance(value, Mapping | list | tuple):
            if id(value) in inside or len(inside) > DEEPEST:
                raise CommonweightError(f"{where}: it contains itself, or is nested more than {DEEPEST} deep")
            for key, v in value.items() if isinstance(value, Mapping) else enumerate(value):
                look(v, (*at, str(key)), (*inside, id(value)))
        elif isinstance(value, int) and not -_INTEGER <= value < _INTEGER:
            line = next((lines[at[:n]] for n in range(len(at), 0, -1) if at[:n] in lines), 0) if lines else 0
            place = f"{where}, line {line}" if line else f"{where}"
            raise CommonweightError(
                f"{place}: {'.'.join(at)} is a whole number of {value.bit_length()} bits; wanted at most 64"
            )

    look(body, (), ())


def _counted(node: Any, where: str | Path) -> None:
    """Raises: CommonweightError for more than `ENTRIES` values with every alias written out, counted without that."""
    sizes: dict[int, int] = {}

    def size(n: Any, inside: frozenset[int]) -> int:
        if id(n) in inside:
            raise CommonweightError(f"{where}, line {n.start_mark.line + 1}: it contains itself, by an alias")
        if id(n) not in sizes:
            inside = inside | {id(n)}
            children = [] if isinstance(n.value, str) else n.value
            parts = [x for c in children for x in (c if isinstance(c, tuple) else (c,))]
            sizes[id(n)] = 1 + sum(size(p, inside) for p in parts)
        return sizes[id(n)]

    if (total := size(node, frozenset())) > ENTRIES:
        raise CommonweightError(
            f"{where}: it has {total:,} values when its aliases are written out; wanted at most {ENTRIES:,}"
        )


def _loader() -> Any:
    """YAML's safe loader with 2e-3 as a number; in YAML 1.1 it is a text."""
    import yaml

    class Loader(yaml.SafeLoader):
        depth = 0

        def compose_node(self, parent: Any, index: Any) -> Any:
            self.depth += 1
            if self.depth > DEEPEST + 1:
                mark = self.peek_event().start_mark
                raise yaml.MarkedYAMLError(problem=f"nested more than {DEEPEST} deep", problem_mark=mark)
            node = super().compose_node(parent, index)
            self.depth -= 1
            return node

        def construct_object(self, node: Any, deep: bool = False) -> Any:
            try:
                return super().construct_object(node, deep)
            except yaml.YAMLError:
                raise
            except Exception as e:  # a date of no calendar, a tag that does not fit: constructors raise what they like
                why = first_line(e) if isinstance(e, ValueError) else f"it is no {node.tag.rpartition(':')[2]}"
                why = f"{repr(node.value)[:60]} cannot be read ({why}); a text stands in quotation marks"
                raise yaml.MarkedYAMLError(problem=why, problem_mark=node.start_mark) from e

    number = re.compile(r"[-+]?[0-9]+[eE][-+]?[0-9]+$")
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", number, [*"-+0123456789"])
    return Loader


def _lines(where: str | Path, node: Any, here: tuple[str, ...], out: Lines) -> None:
    """Line of every key. Raises for a key that is twice there, of which YAML's reader would take the last."""
    if node.id == "mapping" and len(here) < 3:
        for key, value in node.value:
            at = (*here, str(key.value))
            if at in out:
                raise CommonweightError(
                    f"{where}, line {key.start_mark.line + 1}: {'.'.join(at)} appears twice, first in line {out[at]}"
                )
            out[at] = key.start_mark.line + 1
            _lines(where, value, at, out)
