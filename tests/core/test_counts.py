"""Counts in words."""

from __future__ import annotations

from commonweight.core import counted


def test_one_is_no_plural():
    assert [counted(n, "row") for n in (0, 1, 2, 2000)] == ["0 rows", "1 row", "2 rows", "2,000 rows"]
    assert [counted(n, "entry", "entries") for n in (1, 5)] == ["1 entry", "5 entries"]
