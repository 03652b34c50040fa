"""Which version of this library is at work."""

from __future__ import annotations

import functools


@functools.cache
def library() -> str:
    """This library's version, where it is installed. Looked up once: every tenant's file tells it, and the list of what
    is installed takes longer to read than the file to write."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("commonweight")
    except PackageNotFoundError:
        return "unknown"
