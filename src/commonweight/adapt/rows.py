"""Training data as rows (dicts by column): JSONL, CSV, TSV and Parquet files, or a data set on the hub.

TSV files are read without quoting, so that a quotation mark is a character like any other, and may lack a header line:
the first line is one when all of its cells are usual column names. A CSV file has one unless it is said to have none.
"""

from __future__ import annotations

import csv
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..core import CommonweightError, first_line, unknown

Row = dict[str, Any]

KINDS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".tsv": "tsv", ".parquet": "parquet"}
TEXT = ("text", "sentence", "content", "question", "review", "query", "input")
LABEL = ("label", "labels", "class", "category", "target", "intent", "coarse_label")
PAIRS = (("anchor", "positive"), ("sentence1", "sentence2"), ("query", "passage"), ("question", "answer"))
KNOWN = {*TEXT, *LABEL, *(c for pair in PAIRS for c in pair), "prompt", "completion", "messages", "id", "idx"}


def read(
    source: str | Path, columns: Sequence[str] = (), *, split: str = "train", no_header: bool = False,
    say: Callable[[str], None] | None = None,
) -> list[Row]:  # fmt: skip
    """All rows of a file, or of a split of a hub data set (``name``, ``name:split``, ``name:configuration:split``).

    columns: names that tell a TSV file's header line from a first row when the usual names do not. no_header: the
    first line of a CSV or TSV file is data. say: is told when a first line was read as data.
    Raises: CommonweightError for what is not there, not readable, of an unknown type, or empty.
    """
    path = Path(source)
    kind = KINDS.get(path.suffix.lower())
    if path.is_dir():
        raise CommonweightError(f"{source} is a folder; wanted a file ({', '.join(KINDS)}) or a data set's name")
    if path.is_file():
        if kind is None:
            raise CommonweightError(
                f"{source}: unknown file type {path.suffix or path.name!r}; wanted one of {', '.join(KINDS)}"
            )
        rows = _file(path, kind, columns, no_header, say)
    elif kind or (path.suffix and "/" not in str(source)) or str(source).count("/") > 1 or str(source)[:1] in "./~":
        raise CommonweightError(f"{source}: no such file")
    else:
        rows = _hub(str(source), split)
    if not rows:
        raise CommonweightError(f"{source}: no rows in it")
    return rows


def _file(
    path: Path, kind: str, columns: Sequence[str], no_header: bool, say: Callable[[str], None] | None
) -> list[Row]:
    import datasets

    if path.stat().st_size == 0:
        raise CommonweightError(f"{path}: the file is empty")
    try:
        options = _table(path, kind, columns, no_header) if kind in ("csv", "tsv") else {}
        if say is not None and options.get("skiprows") == 0:
            say(f"{path}: no header line; first row read as data")
        builder = "csv" if kind == "tsv" else kind
        with tempfile.TemporaryDirectory() as cache, _quiet(datasets):
            found = datasets.load_dataset(
                builder, data_files=str(path), split="train", cache_dir=cache, keep_in_memory=True, **options
            )
            return _plain(found)
    except CommonweightError:
        raise
    except Exception as e:  # a parser's error has as many types as there are parsers
        cause = e.__cause__ or e
        raise CommonweightError(f"{path}: cannot be read as {kind}: {first_line(cause)}") from e


def _table(path: Path, kind: str, columns: Sequence[str], no_header: bool) -> dict[str, Any]:
    """Options for a CSV or TSV: every column is text, empty cells too; quoting only in CSV."""
    import datasets

    sep = "\t" if kind == "tsv" else ","
    quoting = csv.QUOTE_NONE if kind == "tsv" else csv.QUOTE_MINIMAL
    with open(path, encoding="utf-8-sig", newline="") as f:
        lines = [row for _, row in zip(range(200), csv.reader(f, delimiter=sep, quoting=quoting))]
    head = [row for row in lines if row]
    first = [c.strip() for c in head[0]] if head else []
    usual = any(c in columns for c in first) or all(c.lower() in KNOWN for c in first)
    has_header = not no_header and (kind == "csv" or usual)
    if len(head) <= has_header:
        raise CommonweightError(f"{path}: no rows in it")
    if has_header:
        names = first
    elif len(first) == 2:
        few = [len({row[i] for row in head if len(row) == 2}) for i in (0, 1)]
        short = [sum(len(row[i]) for row in head if len(row) == 2) for i in (0, 1)]
        names = ["label", "text"] if (few[0], short[0]) <= (few[1], short[1]) else ["text", "label"]
    elif len(first) == 1:
        names = ["text"]
    else:
        raise CommonweightError(
            f"{path}: {len(first)} columns and no header line of usual names ({', '.join(first[:4])} ...); "
            "name its columns with --text-column and --label-column"
        )
    return {
        "sep": sep, "quoting": int(quoting), "names": names, "header": None,
        "skiprows": lines.index(head[0]) + 1 if has_header else 0,
        "encoding": "utf-8-sig", "keep_default_na": False, "na_filter": False,
        "features": datasets.Features({n: datasets.Value("string") for n in names}),
    }  # fmt: skip


def _hub(source: str, split: str) -> list[Row]:
    import datasets

    name, *more = source.split(":")
    if len(more) > 2:
        raise CommonweightError(f"{source}: wanted name, name:split or name:configuration:split")
    split, configuration = more[-1] if more else split, more[0] if len(more) == 2 else None
    try:
        with _quiet(datasets):
            return _plain(datasets.load_dataset(name, configuration, split=split))
    except Exception as e:
        raise CommonweightError(
            f"{source}: neither a file here nor a data set that the hub gives: {first_line(e)}"
        ) from e


def _plain(found: Any) -> list[Row]:
    """Rows as dicts, class numbers turned into their names."""
    classes = {k: f for k, f in found.features.items() if type(f).__name__ == "ClassLabel"}
    rows = [dict(r) for r in found]
    for k, feature in classes.items():
        for r in rows:
            r[k] = feature.int2str(r[k]) if r[k] is not None and r[k] >= 0 else None
    return rows


class _quiet:
    """No progress bars of `datasets` within it."""

    def __init__(self, datasets: Any):
        self.datasets = datasets

    def __enter__(self) -> None:
        self.was = self.datasets.is_progress_bar_enabled()
        self.datasets.disable_progress_bar()

    def __exit__(self, *_: object) -> None:
        if self.was:
            self.datasets.enable_progress_bar()


def column(rows: Sequence[Row], asked: str | None, usual: Sequence[str], what: str) -> str:
    """The column that holds `what`: the one asked for, else the first usual name."""
    there = list(rows[0])
    if asked is not None:
        if asked not in there:
            raise unknown(f"{what} column", asked, there)
        return asked
    for name in usual:
        found = next((c for c in there if c.lower() == name), None)
        if found is not None:
            return found
    flag = what.split()[0]
    raise CommonweightError(
        f"no {what} column among {', '.join(map(str, there))}; usual names: {', '.join(usual)}; "
        f"name yours with --{flag}-column (a CSV file without a header line: --no-header)"
    )


def text_of(row: Row, name: str, i: int) -> str:
    value = row.get(name)
    if not isinstance(value, str) or not value.strip():
        raise CommonweightError(f"row {i + 1}: {name!r} is {value!r}; wanted a text")
    return value
