"""Which exceptions are the user's to mend, and how they are told."""

from __future__ import annotations


def explain(e: Exception) -> str | None:
    """The message of an error that the user can mend; None for a fault of the program, which keeps its traceback."""
    if isinstance(e, OSError):
        what = f"{e.filename}: {e.strerror}" if e.filename and e.strerror else str(e) or type(e).__name__
        return what.splitlines()[0]
    from ..core import CommonweightError

    return str(e) if isinstance(e, CommonweightError) else None
