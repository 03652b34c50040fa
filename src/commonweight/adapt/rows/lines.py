"""JSON: one object a line, or one list of objects. Values stay what stands in the file: no text becomes a date, a
number or a boolean, and a number keeps its digits.

A row is bounded before a parser sees it: at most MAX_ROW bytes, and MAX_DEPTH lists and objects inside each other.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ...core import CommonweightError
from .columns import Row, there

MAX_ROW = 16 * 2**20
MAX_DEPTH = 64

# A text, closed or not, or a bracket. Possessive: a text is never looked at twice.
TOKEN = re.compile(r'"(?:[^"\\]++|\\.?)*+(?:"|\Z)|[\[\]{}]', re.DOTALL)


class Number(float):
    """A number with a fraction or an exponent; as a text it is what stood in the file: 1.50, not 1.5."""

    __slots__ = ("text",)
    text: str

    def __new__(cls, text: str | float) -> Number:
        new = super().__new__(cls, text)
        new.text = str(text)
        return new

    def __str__(self) -> str:
        return self.text


def read_json(path: Path, say: Callable[[str], None] | None = None) -> list[Row]:
    """Rows of a JSONL or JSON file. Raises: CommonweightError with the line for what is no row, or over the bounds."""
    with open(path, "rb") as f:
        start = f.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
    if start[:1] == b"[":
        rows = _listed(_text(path))
    else:
        try:
            rows = list(_lines(path))
        except CommonweightError:
            if start.partition(b"\n")[0].rstrip() not in (b"{", b'{"'[:1]) and path.suffix.lower() != ".json":
                raise
            rows = _object(_text(path), path, say)
    names = there(rows)
    return [{k: row.get(k) for k in names} for row in rows]


def _lines(path: Path) -> Iterator[Row]:
    with open(path, "rb") as f:
        number = 0
        while line := f.readline(MAX_ROW + 1):
            number += 1
            if len(line) > MAX_ROW:
                raise CommonweightError(f"line {number}: more than {MAX_ROW:,} bytes, the most that a row may have")
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if not line.strip():
                continue
            where = f"line {number}"
            try:
                text = line.decode()
            except UnicodeDecodeError as e:
                raise CommonweightError(f"{where}: not UTF-8: {e.reason}; save the file as UTF-8") from None
            if text.count("[") + text.count("{") > MAX_DEPTH:
                _shallow(text, where)
            yield _row(_parse(text, where), where)


def _listed(text: str) -> list[Row]:
    """Rows of a list that is the whole file."""
    rows, at, where = [], text.index("[") + 1, "the list"
    while True:
        at = _blank(text, at)
        if text[at : at + 1] == "]":
            if text[at + 1 :].strip():
                raise CommonweightError(f"something follows the list of rows: {text[at + 1 :].strip()[:40]!r}")
            return rows
        where = f"row {len(rows) + 1}"
        end = _extent(text, at, where)
        rows.append(_row(_parse(text[at:end], where), where))
        at = _blank(text, end)
        if text[at : at + 1] == ",":
            at += 1
            if text[_blank(text, at) :][:1] == "]":
                raise CommonweightError(f"{where}: a comma with no row after it")
        elif text[at : at + 1] != "]":
            raise CommonweightError(f"{where}: wanted a comma or the end of the list after it")


def _object(text: str, path: Path, say: Callable[[str], None] | None) -> list[Row]:
    """Rows of a file that is one object: a list for each column, or one list of rows under some key."""
    _shallow(text, "the file")
    body = _parse(text, "the file")
    if not isinstance(body, dict):
        raise CommonweightError(f"the file is {_kind(body)}; wanted an object a line, or a list of objects")
    lists = {k: v for k, v in body.items() if isinstance(v, list)}
    of_rows = [k for k, v in lists.items() if v and all(isinstance(r, dict) for r in v)]
    if len(of_rows) == 1:
        if say is not None:
            say(f"{path}: rows are those of {of_rows[0]!r}")
        return [_row(r, f"row {i + 1}") for i, r in enumerate(lists[of_rows[0]])]
    if lists and len(lists) == len(body) and len({len(v) for v in lists.values()}) == 1:
        return [dict(zip(lists, values)) for values in zip(*lists.values())]
    if not lists:
        return [_row(body, "the file")]
    raise CommonweightError(
        f"the file is one object with {', '.join(list(body)[:5])}; wanted an object a line, or a list of objects"
    )


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as e:
        raise CommonweightError(f"not UTF-8: {e.reason}; save the file as UTF-8") from None


def _blank(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    return at


def _extent(text: str, at: int, where: str) -> int:
    """The end of the value that begins at `at`."""
    if text[at : at + 1] not in ("{", "["):
        return next((m.start() for m in re.compile(r"[,\]]").finditer(text, at)), len(text))
    for end, depth in _brackets(text, at, where):
        if end - at > MAX_ROW:
            raise CommonweightError(f"{where}: more than {MAX_ROW:,} characters, the most that a row may have")
        if not depth:
            return end
    raise CommonweightError(f"{where}: it has no end")


def _brackets(text: str, at: int, where: str) -> Iterator[tuple[int, int]]:
    """(end, depth after it) of every token of JSON that is a text or a bracket. Raises: for what is nested too deep."""
    depth = 0
    for m in TOKEN.finditer(text, at):
        if m[0] in ("[", "{"):
            depth += 1
            if depth > MAX_DEPTH:
                raise CommonweightError(f"{where}: more than {MAX_DEPTH} lists and objects inside each other")
        elif m[0] in ("]", "}"):
            depth -= 1
        yield m.end(), depth


def _shallow(text: str, where: str) -> None:
    for _ in _brackets(text, 0, where):
        pass


def _parse(text: str, where: str) -> Any:
    try:
        value = json.loads(text, parse_float=Number, parse_constant=Number, object_pairs_hook=_once)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()  # half of a pair of \ud83d\ude00 is no character
        return value
    except json.JSONDecodeError as e:
        near = text[max(0, e.pos - 20) : e.pos + 20].strip()
        raise CommonweightError(f"{where}: not valid JSON: {e.msg} at {near!r}") from None
    except UnicodeEncodeError:
        raise CommonweightError(
            f"{where}: half a character (a surrogate, \\ud800 to \\udfff, without its partner)"
        ) from None
    except ValueError as e:  # a number of too many digits, or a key that is twice there
        raise CommonweightError(f"{where}: {e}") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) < len(pairs):
        keys = [k for k, _ in pairs]
        raise ValueError(f"the key {next(k for k in keys if keys.count(k) > 1)!r} appears twice")
    return out


def _row(value: Any, where: str) -> Row:
    if not isinstance(value, dict):
        raise CommonweightError(f'{where}: it is {_kind(value)}; wanted an object, as in {{"text": "..."}}')
    return value


def _kind(value: Any) -> str:
    return {list: "a list", str: "a text", bool: "a boolean", type(None): "null"}.get(type(value), "a number")
