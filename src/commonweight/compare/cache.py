"""Finished runs in a folder: one JSON file each, named by a digest of everything that decides its numbers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..core import CommonweightError
from ..formats import atomic


def digest(facts: Mapping[str, Any]) -> str:
    """32 hex digits that two runs share only when all their facts, JSON-ready, are the same."""
    text = json.dumps(facts, sort_keys=True, ensure_ascii=False)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def file_digest(path: str | Path) -> str:
    return hashlib.blake2b(Path(path).read_bytes(), digest_size=16).hexdigest()


class Cache:
    """Records by key. A record appears whole or not at all, so that a killed comparison loses only what was running."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        if self.folder.exists() and not self.folder.is_dir():
            raise CommonweightError(f"--cache {folder} is a file; wanted a folder")

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.json"

    def get(self, key: str) -> dict[str, Any] | None:
        """The record, or None. Raises: CommonweightError for a damaged file, which it names."""
        path = self._path(key)
        try:
            found = json.loads(path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as e:
            raise CommonweightError(f"{path}: cannot be read ({e}); delete it, and the run is done again") from e
        if not isinstance(found, dict) or found.get("key") != key:
            raise CommonweightError(f"{path}: holds another run than the one in its name; delete it")
        return found

    def put(self, record: Mapping[str, Any]) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise CommonweightError(f"--cache {self.folder}: cannot be made: {e.strerror}") from e
        atomic.write(self._path(record["key"]), json.dumps(record, ensure_ascii=False).encode())

    def __contains__(self, key: str) -> bool:
        return self._path(key).is_file()

    def __len__(self) -> int:
        return sum(1 for _ in self.folder.glob("*.json")) if self.folder.is_dir() else 0
