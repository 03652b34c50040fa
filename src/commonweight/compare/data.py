"""The tasks of a comparison: which files belong together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..adapt.rows import KINDS
from ..core import CommonweightError, unknown

DEV = 0.1


@dataclass(frozen=True)
class Data:
    """One task: its name and its files. dev: a file, or the share of the training rows that is held out."""

    name: str
    train: str
    test: str
    dev: str | float = DEV


def find(train: Sequence[str], test: Sequence[str] = (), dev: Sequence[str] = ()) -> tuple[Data, ...]:
    """One task for each training file. Test and dev files are found beside it: NAME.train.tsv, NAME.test.tsv,
    NAME.dev.tsv.

    test, dev: files in the order of the training files; dev may also be one fraction for all of them. Without dev
    files, a tenth of the training rows. Raises: CommonweightError for missing files, or a wrong number of them.
    """
    if not train:
        raise CommonweightError("no training file; give one per task")
    _as_many("--eval", test, train)
    fraction = _fraction(dev[0]) if len(dev) == 1 else None
    if fraction is None:
        _as_many("--dev", dev, train)
    out = []
    for i, file in enumerate(train):
        path = _there(file)
        beside = path.name.replace(".train.", ".{}.")
        found = test[i] if test else _sibling(path, beside, "test")
        if found is None:
            raise CommonweightError(f"{file}: no test file; give it with --eval, or call the pair NAME.train.tsv and "
                                    "NAME.test.tsv")  # fmt: skip
        held = fraction if fraction is not None else dev[i] if dev else _sibling(path, beside, "dev") or DEV
        for other in (found, held):
            if isinstance(other, str):
                _there(other)
        out.append(Data(path.name.split(".")[0], str(path), str(found), held))
    names = [d.name for d in out]
    if len(set(names)) < len(names):
        twice = next(n for n in names if names.count(n) > 1)
        raise CommonweightError(f"two training files are called {twice!r}; the name up to the first dot is the task's")
    return tuple(out)


def _as_many(flag: str, files: Sequence[str], train: Sequence[str]) -> None:
    if files and len(files) != len(train):
        raise CommonweightError(f"{len(files)} x {flag} for {len(train)} training files; give one for each, or none")


def _fraction(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _there(file: str) -> Path:
    path = Path(file)
    if not path.is_file():
        raise CommonweightError(f"{file}: no such file")
    if path.suffix.lower() not in KINDS:
        raise unknown("file type", path.suffix or path.name, KINDS, f"in {file}")
    return path


def _sibling(path: Path, pattern: str, part: str) -> str | None:
    other = path.with_name(pattern.format(part))
    return str(other) if other != path and other.is_file() else None
