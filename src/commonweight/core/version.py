"""Which version of this library is at work."""

from __future__ import annotations


def library() -> str:
    """This library's version, where it is installed."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("commonweight")
    except PackageNotFoundError:
        return "unknown"
