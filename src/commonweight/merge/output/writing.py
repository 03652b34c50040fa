"""What the operating system says when a file cannot be written, told with the file and what to do."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ...core import CommonweightError

FULL = {
    errno.ENOSPC: "make room",
    getattr(errno, "EDQUOT", errno.ENOSPC): "make room",
    errno.EFBIG: "a file may not become as large here (ulimit -f, or the file system's limit): raise it",
}


def full(e: BaseException) -> bool:
    """Whether an error comes from a file that has no room."""
    return isinstance(e.__cause__, OSError) and e.__cause__.errno in FULL


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raises: CommonweightError for a file that has no room; other errors of the system with the file's name."""
    try:
        yield
    except OSError as e:
        if e.errno in FULL:
            raise CommonweightError(
                f"{path}: no space left; {FULL[e.errno]}, then the same command with --resume goes on"
            ) from e
        raise OSError(e.errno, e.strerror, str(path)) from e
