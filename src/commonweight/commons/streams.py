"""Streams of tasks in a store: which tenants the next step of one begins from."""

from __future__ import annotations

import json
from pathlib import Path

from ..core import CommonweightError

FOLDER, FILE = "streams", "stream.json"


def wanted(folder: Path) -> dict[str, list[str]]:
    """Label of a tenant -> the streams of the store that go on from it, or have yet to measure it: those that the
    records of their last task, and of unmeasured ones, name. Raises: CommonweightError for a record that is damaged."""
    out: dict[str, list[str]] = {}
    for path in sorted((folder / FOLDER).glob(f"*/{FILE}")):
        try:
            stages = json.loads(path.read_text("utf-8"))["stages"]
            last = [s for s in stages if s is stages[-1] or s.get("scores") is None]
            labels = {str(label) for s in last for label in s["tenants"].values()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
            raise CommonweightError(f"{path}: cannot be read as a stream ({e})") from e
        for label in sorted(labels):
            out.setdefault(label, []).append(path.parent.name)
    return out
