"""The page on merging: its examples run, and it names every method."""

from __future__ import annotations

import re
from pathlib import Path

import commonweight as cw
from commonweight.merge import registry

PAGE = (Path(__file__).parents[2] / "docs" / "merging.md").read_text(encoding="utf-8")


def test_the_examples_run(monkeypatch):
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE, re.M | re.S)
    exec(compile("\n".join(blocks), "merging.md", "exec"), {"__name__": "example"})


def test_the_table_has_every_method():
    cells = [line.split("|")[1] for line in PAGE.splitlines() if line.startswith("| `")]
    assert {n for c in cells for n in re.findall(r"`(\w+)`", c)} == cw.merge.available().keys()
