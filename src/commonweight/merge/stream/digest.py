"""Fast digests of tensors' bytes, to know them again: at the speed of memory, not of SHA-256.

Bytes are laid out in rows of 4096; the 64-bit words are summed by row and by column, modulo 2**64, and the sums go
through BLAKE2b. Any accidental change shows. It is no defence against someone who wants two inputs to look alike.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

ROW = 4096
SIZE = 16


class Running:
    """A digest of pieces, in their order. Columns are added up over all of them."""

    def __init__(self) -> None:
        self._hash = hashlib.blake2b(digest_size=SIZE)
        self._columns = np.zeros(ROW // 8, np.int64)

    def add(self, values: Tensor, sums: tuple[np.ndarray, np.ndarray] | None = None) -> None:
        """values: one dimension, contiguous. sums: by row and by column, if they are known."""
        rest = values.nbytes % ROW
        if values.nbytes > rest:
            rows, columns = sums or _sums(values)
            self._hash.update(rows.data)
            self._columns += columns
        if rest:
            self._hash.update(values.view(torch.uint8)[-rest:].numpy().data)

    def value(self) -> bytes:
        self._hash.update(self._columns.data)
        return self._hash.digest()


def _sums(values: Tensor) -> tuple[np.ndarray, np.ndarray]:
    data = values.view(torch.uint8)
    words = data[: len(data) // ROW * ROW].view(torch.int64).view(-1, ROW // 8)
    return words.sum(1).numpy(), words.sum(0).numpy()


def of(parts: Any) -> str:
    """Hexadecimal, of bytes one after the other."""
    h = hashlib.blake2b(digest_size=SIZE)
    for p in parts:
        h.update(p)
    return h.hexdigest()


def of_value(value: Any) -> str:
    """Of nested plain values, dataclasses and tensors: what a survey found, or a configuration."""
    h = hashlib.blake2b(digest_size=SIZE)
    h.update(json.dumps(plain(value), sort_keys=True, allow_nan=True).encode())
    return h.hexdigest()


def of_file(path: Path) -> str:
    """Of a file's content."""
    with open(path, "rb") as f:
        return hashlib.file_digest(f, lambda: hashlib.blake2b(digest_size=SIZE)).hexdigest()


def plain(value: Any) -> Any:
    """Nested values as JSON has them."""
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, Tensor):
        return [str(value.dtype), list(value.shape), hashlib.blake2b(value.contiguous().numpy().tobytes()).hexdigest()]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, float):
        return value.hex()
    mark = getattr(value, "digest", None)
    return mark() if callable(mark) else repr(value)
