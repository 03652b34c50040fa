"""Blocks of code out of a page, and how each kind is run."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from commonweight.cli import main

ROOT = Path(__file__).parents[2]


class Block(NamedTuple):
    """line: its first line in the page. title: the name of the file that it shows, or ""."""

    kind: str
    title: str
    text: str
    line: int


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    found = re.finditer(r'^( *)```(\w+)(?: title="([^"]+)")?[^\n]*\n(.*?)^\1```', text, re.M | re.S)
    return [
        Block(m[2], m[3] or "", re.sub(rf"^{m[1]}", "", m[4], flags=re.M), text.count("\n", 0, m.start(4)) + 1)
        for m in found
    ]


def commands(text: str) -> Iterator[list[str]]:
    """The arguments of every call of commonweight behind a ``$`` of a console block; other programs are left out."""
    for line in re.sub(r"\\\n *", " ", text).splitlines():
        for part in line.removeprefix("$ ").split(" && ") if line.startswith("$ ") else ():
            words = shlex.split(part, comments=True)
            if words[:1] == ["commonweight"]:
                yield words[1:]


def run(page: Path) -> int:
    """Runs a page's blocks where we are, as somebody would who reads from top to bottom: files are written, commands
    called, Python is one program. Returns how many blocks did something."""
    names = {"__name__": "example"}
    count = 0
    for b in blocks(page):
        where = f"{page.name}, line {b.line}"
        if b.title:
            Path(b.title).write_text(b.text, encoding="utf-8")
        elif b.kind == "python":
            exec(compile("\n" * (b.line - 1) + b.text, str(page), "exec"), names)
        elif b.kind == "console":
            for words in commands(b.text):
                call(words, where)
        else:
            continue
        count += 1
    return count


def call(words: list[str], where: str) -> None:
    try:
        main(words)
    except SystemExit as e:
        assert not e.code, f"{where}: commonweight {shlex.join(words)} ended with {e.code}"
