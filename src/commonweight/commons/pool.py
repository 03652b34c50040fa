"""Pools on disk: one safetensors file with one tensor, named by the hash of what it holds.

The file is a pure function of dtype, shape and bytes: equal pools are one file, and every bit of a file, its header
too, can be checked against its name. Nothing here needs torch but `Mapped.tensor`.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..core import CommonweightError
from ..formats import atomic

if TYPE_CHECKING:
    from torch import Tensor

NAME = "pool"
HASH = re.compile(r"[0-9a-f]{64}")
# safetensors' dtypes: bytes per number, and torch's name
DTYPES = {
    "BOOL": (1, "bool"), "U8": (1, "uint8"), "I8": (1, "int8"), "F8_E4M3": (1, "float8_e4m3fn"),
    "F8_E5M2": (1, "float8_e5m2"), "U16": (2, "uint16"), "I16": (2, "int16"), "F16": (2, "float16"),
    "BF16": (2, "bfloat16"), "U32": (4, "uint32"), "I32": (4, "int32"), "F32": (4, "float32"), "U64": (8, "uint64"),
    "I64": (8, "int64"), "F64": (8, "float64"), "C64": (8, "complex64"),
}  # fmt: skip


class Gone(CommonweightError):
    """A file that a manifest names is not there: it is missing, or was just replaced or removed by another process."""


class Content(NamedTuple):
    """A tensor as safetensors holds it: its dtype by safetensors' name, its shape, its bytes."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes | bytearray | memoryview

    def tensor(self) -> Tensor:
        """Over the same memory when `data` can be written, else over a copy."""
        import torch

        dtype = getattr(torch, DTYPES[self.dtype][1])
        if not len(self.data):
            return torch.empty(self.shape, dtype=dtype)
        data = self.data if isinstance(self.data, bytearray) else bytearray(self.data)
        return torch.frombuffer(data, dtype=dtype).reshape(self.shape)


class Ref(NamedTuple):
    """A pool as a manifest names it: a file of its own; or, with `at`, the bytes from there on of a pack, which is a
    file of many small pools."""

    hash: str
    dtype: str
    shape: tuple[int, ...]
    at: int | None = None

    @classmethod
    def checked(cls, hash: Any, dtype: Any, shape: Any, at: int | None = None) -> Ref:
        """From JSON. Raises: ValueError for what is no reference."""
        whole = isinstance(shape, list) and all(type(n) is int and n >= 0 for n in shape)
        if not isinstance(hash, str) or not HASH.fullmatch(hash) or dtype not in DTYPES or not whole:
            raise ValueError((hash, dtype, shape))
        return cls(hash, dtype, tuple(shape), at)

    @property
    def numbers(self) -> int:
        """Bytes of its numbers."""
        return math.prod(self.shape) * DTYPES[self.dtype][0]

    @property
    def nbytes(self) -> int:
        """Bytes of the pool's file; in a pack, those of its numbers."""
        return size(self.dtype, self.shape) if self.at is None else self.numbers


def pack(contents: Mapping[str, Content]) -> tuple[Content, dict[str, Ref]]:
    """(one file of many pools, tensor -> where in it): their bytes one after another, by name."""
    data = b"".join(bytes(contents[k].data) for k in sorted(contents))
    whole = Content("U8", (len(data),), data)
    hash, at, refs = address(whole), 0, {}
    for name in sorted(contents):
        c = contents[name]
        refs[name] = Ref(hash, c.dtype, c.shape, at)
        at += len(c.data)
    return whole, refs


def address(c: Content) -> str:
    """64 hex digits: BLAKE2b-256 of dtype, shape and bytes."""
    h = hashlib.blake2b(json.dumps([c.dtype, list(c.shape)]).encode() + b"\0", digest_size=32)
    h.update(c.data)
    return h.hexdigest()


def head(dtype: str, shape: tuple[int, ...]) -> bytes:
    """The safetensors header of the pool's file: the one spelling that this store accepts."""
    size = math.prod(shape) * DTYPES[dtype][0]
    body = json.dumps({NAME: {"dtype": dtype, "shape": list(shape), "data_offsets": [0, size]}}, separators=(",", ":"))
    body += " " * (-len(body) % 8)
    return len(body).to_bytes(8, "little") + body.encode()


def size(dtype: str, shape: tuple[int, ...]) -> int:
    """Bytes of the pool's file."""
    return len(head(dtype, shape)) + math.prod(shape) * DTYPES[dtype][0]


def path(root: Path, hash: str) -> Path:
    """Raises: CommonweightError for what is no hash, so that no manifest can point out of the store."""
    if not isinstance(hash, str) or not HASH.fullmatch(hash):
        raise CommonweightError(f"{hash!r} is not a pool's hash; wanted 64 hex digits")
    return root / "pools" / hash[:2] / f"{hash}.safetensors"


def write(root: Path, hash: str, c: Content) -> bool:
    """Writes the pool unless it is there already, bit for bit; mends one that is damaged. True when it wrote."""
    at, whole = path(root, hash), head(c.dtype, c.shape) + bytes(c.data)
    try:
        if at.read_bytes() == whole:
            return False
    except OSError:
        pass
    if not at.parent.is_dir():
        at.parent.mkdir(exist_ok=True)
        atomic.sync(at.parent.parent)
    atomic.write(at, whole)
    return True


@dataclass(frozen=True)
class Mapped:
    """An open pool: it can be read even after the file's name is gone."""

    path: Path
    hash: str
    buffer: mmap.mmap

    def content(self) -> Content:
        """The pool, every bit checked. Cost: reads it once. Raises: CommonweightError when it was altered."""
        try:
            length = int.from_bytes(self.buffer[:8], "little")
            about = json.loads(self.buffer[8 : 8 + min(length, 4096)])[NAME]
            dtype, shape = about["dtype"], tuple(about["shape"])
            start = head(dtype, shape)
            if self.buffer[: len(start)] == start and len(self.buffer) == size(dtype, shape):
                found = Content(dtype, shape, bytearray(self.buffer[len(start) :]))
                if address(found) == self.hash:
                    return found
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            pass
        raise CommonweightError(f"{self.path}: this pool was altered; it does not have the content its name says")


def open_pool(root: Path, hash: str) -> Mapped:
    """Raises: Gone when it is not there."""
    at = path(root, hash)
    try:
        with at.open("rb") as f:
            return Mapped(at, hash, mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ))
    except FileNotFoundError as e:
        raise Gone(f"{at}: this pool is missing") from e
    except ValueError as e:  # an empty file cannot be mapped
        raise CommonweightError(f"{at}: this pool was altered; it is empty") from e
