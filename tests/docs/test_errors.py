"""Every message that the page of errors explains is one that the sources raise, word by word."""

from __future__ import annotations

import ast
import re

import pytest

from tests.docs.examples import ROOT
from tests.docs.messages import GAP, messages, text

PAGE = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def known():
    return messages(ROOT / "src")


def shown() -> list[str]:
    """The first cell of every row: a message in backticks, which may hold some itself."""
    cells = [re.match(r"\| (`+) ?(.*?) ?\1 \| ", line) for line in PAGE.splitlines() if line.startswith("| `")]
    return [m[2].replace(r"\|", "|") for m in cells if m]


def fits(message: str, source: str) -> bool:
    """Whether the pieces between a message's gaps stand in the source's, in order."""
    at = 0
    for piece in filter(None, re.split(f"{GAP}+", message)):
        at = source.find(piece, at)
        if at < 0:
            return False
        at += len(piece)
    return True


def test_the_page_has_every_row():
    assert len(shown()) == sum(line.startswith("| `") for line in PAGE.splitlines()) >= 40


@pytest.mark.parametrize("message", shown())
def test_the_sources_raise_it(message, known):
    assert any(fits(message, source) for source in known), "no message of the sources reads like that any more"


def test_gaps_stand_where_something_is_filled_in():
    (found,) = (text(n.value) for n in ast.parse('f"a {x}: b {y!r}" " c"').body)
    assert found == "a …: b … c" and fits("a …: b", found) and fits("…: b … c", found) and not fits("b … a", found)
