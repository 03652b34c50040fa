"""Training data as rows (dicts by column): JSONL, CSV, TSV and Parquet files, folders of `datasets`, or a data set on
the hub. Rows hold what stands in the file; see `lines`, `tables` and `stored` for each format."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from ...core import CommonweightError, first_line
from .columns import AUDIO, IMAGE, LABEL, PAIRS, TEXT, Row, column, text_of, there
from .folders import read_senses, sense_of
from .lines import read_json
from .stored import is_folder, read_folder, read_hub, read_parquet
from .tables import read_table

KINDS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".tsv": "tsv", ".parquet": "parquet"}
FOLDER, SENSED = "folder", "senses"
MARKS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16", b"\x1f\x8b": "gzip", b"PK": "a zip file"}


def read(
    source: str | Path, columns: Sequence[str] = (), *, split: str = "train", no_header: bool = False,
    say: Callable[[str], None] | None = None,
) -> list[Row]:  # fmt: skip
    """All rows of a file, of a split of a folder that `datasets` saved (``folder``, ``folder:split``), of a folder
    of images or sounds with a folder for each class (see `folders`), or of a split of a hub data set (``name``,
    ``name:split``, ``name:configuration:split``).

    columns: column names by which a TSV file's header line is recognised, besides the usual ones. no_header: the
    first line of a CSV or TSV file is data. say: called with a message if a first line was read as data, or if a CSV
    file's separator is not a comma.
    Raises: CommonweightError for a source that is missing, unreadable, empty or of an unknown type, and for rows that
    do not fit their header; for a row of JSON of more than 16 MiB, or nested more than 64
    deep.
    """
    kind = kind_of(source)
    if kind is None:
        rows = read_hub(str(source), split)
    elif kind == SENSED:
        folder, _, named = str(source).rpartition(":")
        whole = Path(source).is_dir()
        rows = read_senses(Path(source), split, say) if whole else read_senses(Path(folder), named, say, named=True)
    elif kind == FOLDER:
        folder, _, named = str(source).rpartition(":")
        rows = read_folder(Path(source), split) if Path(source).is_dir() else read_folder(Path(folder), named)
    else:
        rows = _file(Path(source), kind, columns, no_header, say)
    if not rows:
        raise CommonweightError(f"{source}: no rows in it")
    return rows


def kind_of(source: str | Path) -> str | None:
    """json, csv, tsv or parquet, of a file that is there; `FOLDER` or `SENSED` of a folder; None for the name of
    a hub data set.

    Cost: looks at names alone. Raises: CommonweightError for what is not there or of an unknown type.
    """
    path = Path(source)
    kind = KINDS.get(path.suffix.lower())
    folder = str(source).rpartition(":")[0]
    if path.is_dir() or (folder and Path(folder).is_dir()):
        if is_folder(home := path if path.is_dir() else Path(folder)):
            return FOLDER
        if sense_of(home) is None:
            raise CommonweightError(
                f"{source} is a folder; wanted a file ({', '.join(KINDS)}), a folder that datasets' save_to_disk "
                "wrote, one of images or sounds with a folder for each class, or a data set's name"
            )
        return SENSED
    if path.is_file():
        if kind is None:
            raise CommonweightError(
                f"{source}: unknown file type {path.suffix or path.name!r}; wanted one of {', '.join(KINDS)}"
            )
        return kind
    if kind or (path.suffix and "/" not in str(source)) or str(source).count("/") > 1 or str(source)[:1] in "./~":
        raise CommonweightError(f"{source}: no such file")
    return None


def _file(
    path: Path, kind: str, columns: Sequence[str], no_header: bool, say: Callable[[str], None] | None
) -> list[Row]:
    with open(path, "rb") as f:
        start = f.read(4)
    if not start:
        raise CommonweightError(f"{path}: the file is empty")
    try:
        for mark, what in MARKS.items():
            if start.startswith(mark) and kind != "parquet":
                raise CommonweightError(f"it is {what}; wanted plain text in UTF-8")
        if kind == "json":
            return read_json(path, say)
        if kind == "parquet":
            return read_parquet(path)
        return read_table(path, kind, columns, no_header, say)
    except Exception as e:  # a parser's error has as many types as there are parsers
        told = str(e) if isinstance(e, CommonweightError) else first_line(e.__cause__ or e)
        raise CommonweightError(f"{path}: cannot be read as {kind}: {told}") from e


__all__ = ["AUDIO", "IMAGE", "KINDS", "LABEL", "PAIRS", "TEXT", "Row", "column", "kind_of", "read", "text_of", "there"]
