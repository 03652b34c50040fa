"""Which exceptions are the user's to mend, and how they are told."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_HERE = str(Path(__file__).parents[1])


def explain(e: Exception) -> str | None:
    """The message of an error that the user can mend; None for a fault of the program, which keeps its traceback."""
    if isinstance(e, OSError):
        what = f"{e.filename}: {e.strerror}" if e.filename and e.strerror else str(e) or type(e).__name__
        return what.splitlines()[0]
    from ..core import CommonweightError

    return str(e) if isinstance(e, CommonweightError) else None


@contextmanager
def warned() -> Iterator[None]:
    """Within it what this library warns of stands in one line, without the line of code that Python shows."""
    shown = warnings.formatwarning

    def short(
        message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
    ) -> str:
        if category is UserWarning and filename.startswith(_HERE):
            return f"commonweight: warning: {message}\n"
        return shown(message, category, filename, lineno, line)

    warnings.formatwarning = short
    try:
        yield
    finally:
        warnings.formatwarning = shown
