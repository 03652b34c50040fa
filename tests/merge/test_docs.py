"""The page on merging names every method."""

from __future__ import annotations

import re
from pathlib import Path

import commonweight as cw

PAGE = (Path(__file__).parents[2] / "docs" / "merging.md").read_text(encoding="utf-8")


def test_the_table_has_every_method():
    cells = [line.split("|")[1] for line in PAGE.splitlines() if line.startswith("| `")]
    assert {n for c in cells for n in re.findall(r"`(\w+)`", c)} == cw.merge.available().keys()
