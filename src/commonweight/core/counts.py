"""Counts in words, for messages."""

from __future__ import annotations


def counted(n: int, one: str, more: str | None = None) -> str:
    """A count and its noun: "1 row", "2,000 rows". more: the plural, if it is not `one` and an s."""
    return f"{n:,} {one if n == 1 else more or one + 's'}"
