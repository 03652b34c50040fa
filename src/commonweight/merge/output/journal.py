"""Which tensors of an unfinished merge are whole, and what they were made of: one line each, added as they are done."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ..stream.engine import Done
from .writing import writing

NAME = "journal.jsonl"


class Journal:
    """Opens the journal of `folder`; one of another `key` (the recipe's digest) or layout is begun anew.

    A killed process leaves at most its last line torn, which is then not there. Nothing in it is trusted by itself: a
    tensor counts as done when its inputs and what lies in the output have the digests that were written down.
    """

    def __init__(self, folder: Path, key: str, fresh: bool):
        self._path = folder / NAME
        lines, whole = ([], 0) if fresh else _lines(self._path)
        self.stale = bool(lines) and lines[0].get("key") != key
        self.done: dict[str, Done] = {}
        if lines and not self.stale:
            entries = [Done(e["tensor"], tuple(e["inputs"]), e["output"], e["seen"]) for e in lines[1:]]
            self.done = {d.tensor: d for d in entries}
        self._fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.ftruncate(self._fd, whole if self.done else 0)  # what follows a torn line would be torn with it
        if not self.done:
            self._line({"key": key})

    def add(self, done: Done) -> None:
        self._line(done._asdict())
        self.done[done.tensor] = done

    def close(self) -> None:
        os.close(self._fd)

    def _line(self, entry: dict[str, Any]) -> None:
        data = memoryview((json.dumps(entry) + "\n").encode())
        with writing(self._path):
            while len(data):
                data = data[os.write(self._fd, data) :]


def _lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Those that are whole, from the first one on, and their bytes."""
    out, whole = [], 0
    try:
        data = path.read_bytes()
    except OSError:
        return [], 0
    for line in data.split(b"\n")[:-1]:
        try:
            out.append(json.loads(line))
        except ValueError:
            break
        whole += len(line) + 1
    return out, whole
