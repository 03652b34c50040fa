"""CSV and TSV files. Every cell is the text that stands there, and every row has as many cells as the header.

TSV files are read without quoting, so that a quotation mark is a character like any other, and may lack a header line:
the first line is one when all of its cells are usual column names. A CSV file has one unless it is said to have none.
A CSV file whose columns are separated by semicolons, tabs or bars is read so where only that gives every row the
header's number of cells.
"""

from __future__ import annotations

import csv
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...core import CommonweightError, counted
from .columns import KNOWN, Row
from .lines import MAX_ROW

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
_limit = threading.Lock()  # csv's bound on a cell is one for the whole process

Say = Callable[[str], None] | None


@dataclass(frozen=True)
class Cells:
    """lines: (number of a row's last line, its cells). wrong: why they are no table."""

    lines: list[tuple[int, list[str]]]
    wrong: str | None

    @property
    def width(self) -> int:
        return len(self.lines[0][1])

    @property
    def beyond(self) -> int:
        """Cells that every row has beyond the first line's."""
        return len(self.lines[-1][1]) - self.width


def read_table(path: Path, kind: str, columns: Sequence[str], no_header: bool, say: Say) -> list[Row]:
    found = _csv(path, say) if kind == "csv" else _tsv(path, say)
    if found.wrong is not None:
        raise CommonweightError(found.wrong)
    first = [c.strip() for c in found.lines[0][1]]
    has_header = not no_header and (kind == "csv" or usual(first, columns))
    body = found.lines[1:] if has_header else found.lines
    if not body:
        raise CommonweightError("no rows in it")
    if found.beyond and not has_header:
        raise CommonweightError(uneven(found.lines[:2], "," if kind == "csv" else "\t"))
    if not has_header and say is not None:
        say(f"{path}: no header line; first row read as data")
    if found.beyond and say is not None:
        say(f"{path}: every row has {found.beyond} more than the {len(first)} cells that the header names; not used")
    first += [""] * found.beyond
    names = [c or f"column {i + 1}" for i, c in enumerate(first)] if has_header else guessed(body)
    if len(set(names)) < len(names):
        raise CommonweightError(f"the column {next(n for n in names if names.count(n) > 1)!r} appears twice")
    return [dict(zip(names, cells)) for _, cells in body]


def usual(first: Sequence[str], columns: Sequence[str]) -> bool:
    return any(c in columns for c in first) or all(c.lower() in KNOWN for c in first)


def guessed(body: Sequence[tuple[int, list[str]]]) -> list[str]:
    """Names of one or two columns without a header: the label has fewer and shorter values than the text."""
    first = body[0][1]
    if len(first) == 1:
        return ["text"]
    if len(first) > 2:
        raise CommonweightError(
            f"{counted(len(first), 'column')} and no header line of usual names ({', '.join(first[:4])} ...); "
            "name its columns with --text-column and --label-column"
        )
    some = [cells for _, cells in body[:200]]
    few, short = (
        [f(row[i] for row in some) for i in (0, 1)] for f in (lambda v: len({*v}), lambda v: sum(map(len, v)))
    )
    return ["label", "text"] if (few[0], short[0]) <= (few[1], short[1]) else ["text", "label"]


def _csv(path: Path, say: Say) -> Cells:
    found = cells(path, ",", csv.QUOTE_MINIMAL)
    if found.wrong is None and found.width > 1:
        return found
    others = {s: cells(path, s, csv.QUOTE_MINIMAL) for s in SEPARATORS if s != ","}
    fits = [s for s, c in others.items() if c.wrong is None and c.width > 1 and not c.beyond]
    if len(fits) == 1:
        if say is not None:
            say(f"{path}: its columns are separated by {SEPARATORS[fits[0]]}")
        return others[fits[0]]
    near = [s for s, c in others.items() if c.lines and c.width > 1 and (not found.lines or found.width == 1)]
    if near and found.wrong is not None:
        s = near[0]
        return Cells([], f"its header is separated by {SEPARATORS[s]} and not by commas, but {others[s].wrong}")
    return found


def _tsv(path: Path, say: Say) -> Cells:
    found = cells(path, "\t", csv.QUOTE_NONE)
    if found.lines and found.width == 1:
        other = cells(path, ",", csv.QUOTE_MINIMAL)
        if other.wrong is None and other.width > 1 and usual([c.strip() for c in other.lines[0][1]], ()):
            if say is not None:
                say(f"{path}: its columns are separated by commas")
            return other
    return found


def cells(path: Path, sep: str, quoting: int) -> Cells:
    """The file, cut at `sep`. Cells of a row beyond the header's that are all empty say nothing and are left out.

    Where all rows, and more than one, have as many cells beyond the header's, the header lacks names; no column moves.
    """
    out: list[tuple[int, list[str]]] = []
    with open(path, encoding="utf-8-sig", newline="") as f, _limit:
        reader = csv.reader(f, delimiter=sep, quoting=quoting, strict=True)  # type: ignore[arg-type]
        was = csv.field_size_limit(MAX_ROW)
        try:
            for row in reader:
                if not row or (len(row) == 1 and not row[0].strip()):
                    continue
                width = len(out[0][1]) if out else len(row)
                if len(row) > width and not any(row[width:]):
                    row = row[:width]
                out.append((reader.line_num, row))
                if len(row) < width or len(row) != len(out[min(1, len(out) - 1)][1]):
                    return Cells(out, uneven(out if len(row) != width else out[:2], sep))
        except csv.Error as e:
            return Cells(out, f"line {reader.line_num}: {told(e)}")
        except UnicodeDecodeError as e:
            return Cells([], f"not UTF-8: {e.reason} (byte {e.start}); save the file as UTF-8")
        finally:
            csv.field_size_limit(was)
    if len(out) == 2 and len(out[0][1]) < len(out[1][1]):
        return Cells(out, uneven(out, sep))
    return Cells(out, None if out else "no rows in it")


def uneven(lines: Sequence[tuple[int, list[str]]], sep: str) -> str:
    first, (number, row) = lines[0][1], lines[-1]
    advice = (
        "a tab within a text must go" if sep == "\t" else
        f"a text that has {SEPARATORS[sep]} stands in quotation marks, and each quotation mark in it twice"
    )  # fmt: skip
    return (
        f"line {number}: {len(row)} cells ({', '.join(c[:20] for c in row[:5])}), but the first line has {len(first)} "
        f"({', '.join(c[:20] for c in first[:5])}); {advice}"
    )


def told(e: csv.Error) -> str:
    said = str(e)
    if "field larger" in said:
        return f"a cell of more than {MAX_ROW:,} characters, the most that a row may have; is a quotation mark open?"
    if "unexpected end" in said:
        return "the file ends within a quotation; a quotation mark before it is not closed"
    if "expected after" in said:
        return "a quotation mark closes, and the cell goes on; write a quotation mark within a text twice"
    return said
