"""Digests of an adapter's files, in our report.json beside them. PEFT reads past that file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from ...core import CommonweightError
from ...core.readable import CONFIG_BYTES

REPORT, KEY = "report.json", "sha256"


def of(files: Mapping[str, bytes]) -> dict[str, str]:
    """SHA-256 in hexadecimal digits by file name, as ``sha256sum`` prints it."""
    return {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}


def check(folder: Path) -> None:
    """Compares a folder's files with the digests beside them. A folder without any passes. Cost: it reads the files.

    Raises: CommonweightError naming the file that is not as it was written.
    """
    for name, wanted in _told(folder / REPORT).items():
        path = folder / name
        if not path.is_file():
            raise CommonweightError(
                f"{folder}: has no {name}, which its {REPORT} names; copy the folder whole, or remove {REPORT}"
            )
        with open(path, "rb") as f:
            came = hashlib.file_digest(f, "sha256").hexdigest()
        if came != wanted:
            raise CommonweightError(
                f"{path}: not as commonweight wrote it: its SHA-256 begins with {came[:8]}, {REPORT} beside it says "
                f"{wanted[:8]}; it is damaged, or another tool has written it. Copy it again; if the change is meant, "
                f"remove {REPORT} and import again"
            )


def _told(path: Path) -> dict[str, str]:
    """File name -> digest, of a report that has digests. A report.json of another tool has none."""
    if not path.is_file():
        return {}
    try:
        if path.stat().st_size > CONFIG_BYTES:
            return {}
        report = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as e:
        raise CommonweightError(
            f"{path}: cannot be read ({e}), so the digests of the adapter cannot be checked; copy the folder again, "
            f"or remove {REPORT}"
        ) from e
    told = report.get(KEY) if isinstance(report, dict) else None
    if not isinstance(told, dict):
        return {}
    return {n: d for n, d in told.items() if isinstance(d, str) and n == Path(n).name and n not in ("", ".", "..")}
