"""safetensors files by their header: where each tensor lies, read and written in place."""

from __future__ import annotations

import json
import math
import os
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...core import CommonweightError

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "I64": torch.int64, "I32": torch.int32,
    "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "U16": torch.uint16, "U32": torch.uint32,
    "U64": torch.uint64, "BOOL": torch.bool,
}  # fmt: skip
NAMES = {d: n for n, d in DTYPES.items()}
_HEADER = 100_000_000  # bytes; the format's own limit


class Entry(NamedTuple):
    """A tensor in a file: its first byte counts from the file's beginning."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int


class File:
    """An open file; `entries` and `metadata` from its header. Raises: CommonweightError, with `label`, if damaged."""

    def __init__(self, path: Path, label: str):
        self.path, self._label = path, label
        try:
            self._fd = os.open(path, os.O_RDONLY)
        except OSError as e:
            raise CommonweightError(f"{label}: {path.name} cannot be opened: {e.strerror}") from e
        weakref.finalize(self, os.close, self._fd)
        self.entries, self.metadata = self._parse()

    def read(self, name: str, first: int, count: int) -> Tensor:
        """Elements first .. first + count, flat. Reading, unlike a mapping, fails by an error and not by a signal."""
        e = self.entries[name]
        out = torch.empty(count, dtype=e.dtype)
        view = out.view(torch.uint8).numpy().data
        at = e.start + first * e.dtype.itemsize
        while len(view):
            try:
                n = os.preadv(self._fd, [view], at)
            except OSError as error:
                raise CommonweightError(f"{name}: {self._label}: {self.path.name}: {error.strerror}") from error
            if n == 0:
                raise self._damaged(f"it ends within {name}")
            view, at = view[n:], at + n
        return out

    def ahead(self, name: str) -> None:
        """Tells the system that the tensor will be read soon."""
        e = self.entries[name]
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._fd, e.start, math.prod(e.shape) * e.dtype.itemsize, os.POSIX_FADV_WILLNEED)

    def _parse(self) -> tuple[dict[str, Entry], dict[str, str]]:
        whole = os.fstat(self._fd).st_size
        try:
            length = int.from_bytes(os.pread(self._fd, 8, 0), "little")
            if whole < 8 or length > min(_HEADER, whole - 8):
                raise self._damaged(f"its header says {length:,} bytes, it has {whole:,}")
            header = json.loads(os.pread(self._fd, length, 8))
            metadata = header.pop("__metadata__", {})
            out = {n: self._entry(n, e, 8 + length, whole) for n, e in header.items()}
            self._apart(out, 8 + length)
            return out, dict(metadata)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            if isinstance(error, CommonweightError):
                raise
            raise self._damaged(f"its header cannot be read: {error}") from error

    def _entry(self, name: str, e: Mapping[str, Any], body: int, whole: int) -> Entry:
        if e["dtype"] not in DTYPES:
            raise CommonweightError(f"{name}: {self._label}: {self.path.name} has it in {e['dtype']}, which is unknown")
        dtype, shape, (start, end) = DTYPES[e["dtype"]], tuple(e["shape"]), e["data_offsets"]
        if not all(type(n) is int and 0 <= n < 1 << 63 for n in (*shape, start, end)):
            raise self._damaged(f"{name} has shape {shape} and lies at {[start, end]}; both must be whole numbers")
        if end - start != math.prod(shape) * dtype.itemsize:
            raise self._damaged(f"{name} has {end - start} bytes, its shape {shape} wants others")
        if body + end > whole:
            raise self._damaged(f"{name} ends {body + end - whole:,} bytes after the file; download or copy it again")
        return Entry(dtype, shape, body + start)

    def _apart(self, entries: Mapping[str, Entry], body: int) -> None:
        """The format has tensors one after the other, and nothing between them."""
        end = body
        for name, e in sorted(entries.items(), key=lambda x: (x[1].start, math.prod(x[1].shape))):
            if e.start != end:
                what = "begins within the tensor before it" if e.start < end else "lies behind a hole"
                raise self._damaged(f"{name} {what}")
            end = e.start + math.prod(e.shape) * e.dtype.itemsize

    def _damaged(self, what: str) -> CommonweightError:
        return CommonweightError(f"{self._label}: {self.path.name} is damaged, or is not a safetensors file: {what}")


def metadata(path: Path) -> dict[str, Any]:
    """What the header says of the file, also of one that was cut short after it; nothing where it cannot be read."""
    try:
        with open(path, "rb") as f:
            length = int.from_bytes(f.read(8), "little")
            found = json.loads(f.read(length))["__metadata__"] if length <= _HEADER else {}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def header(tensors: Mapping[str, tuple[torch.dtype, tuple[int, ...]]], metadata: Mapping[str, str]) -> bytes:
    """The first bytes of a file that holds these tensors, in this order; its length is a multiple of 64."""
    body: dict[str, Any] = {"__metadata__": dict(metadata)}
    at = 0
    for name, (dtype, shape) in tensors.items():
        end = at + math.prod(shape) * dtype.itemsize
        body[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(body, separators=(",", ":"), ensure_ascii=True).encode()
    text += b" " * (-(len(text) + 8) % 64)
    return len(text).to_bytes(8, "little") + text
