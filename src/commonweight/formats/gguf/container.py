"""The container: numbers and texts by key, and tensors by name. Versions 2 and 3, little endian.

Layout: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. ``ne`` of a tensor is its shape from behind.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...core import CommonweightError, counted

ALIGNMENT = 32
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_TEXT, _ARRAY = 8, 9
F32, F16, Q8_0, BF16 = 0, 1, 8, 30
_DTYPES = {F32: torch.float32, F16: torch.float16, BF16: torch.bfloat16}
_BLOCK, _BYTES = 32, 34  # of Q8_0: a float16 scale and 32 numbers of 8 bits
_LEAST = 24  # bytes that a key or a tensor takes in the header at least, or nearly


class File(NamedTuple):
    """keys: numbers, texts and lists. tensors: in float32."""

    keys: dict[str, Any]
    tensors: dict[str, Tensor]


class _Bytes:
    """A file's bytes, read from the front; no count is believed beyond them."""

    def __init__(self, path: Path):
        try:
            self.path, self.data, self.at = path, path.read_bytes(), 0
        except OSError as e:
            raise CommonweightError(f"{path}: cannot be read ({e.strerror}); wanted a GGUF file") from e

    def bad(self, why: str) -> CommonweightError:
        return CommonweightError(f"{self.path}: not a whole GGUF file ({why}); copy it again")

    def take(self, n: int) -> bytes:
        if n < 0 or self.at + n > len(self.data):
            raise self.bad(f"{n:,} bytes at {self.at:,} go past its end")
        self.at += n
        return self.data[self.at - n : self.at]

    def number(self, kind: str) -> Any:
        return struct.unpack(f"<{kind}", self.take(struct.calcsize(f"<{kind}")))[0]

    def text(self) -> str:
        try:
            return self.take(self.number("Q")).decode()
        except UnicodeDecodeError as e:
            raise self.bad("a text is not UTF-8") from e

    def value(self, kind: int, depth: int = 0) -> Any:
        if kind in _NUMBERS:
            return self.number(_NUMBERS[kind])
        if kind == _TEXT:
            return self.text()
        if kind != _ARRAY or depth > 4:
            raise self.bad(f"a value of type {kind}")
        inner, n = self.number("I"), self.number("Q")
        if n > len(self.data) - self.at:
            raise self.bad(f"a list of {n:,}")
        return [self.value(inner, depth + 1) for _ in range(n)]


def read(path: Path) -> File:
    """Raises: CommonweightError for a file that is cut off or damaged, and for tensors of other types than F32, F16,
    BF16 and Q8_0. Cost: the file and its numbers in float32."""
    f = _Bytes(path)
    if f.take(4) != b"GGUF":
        raise f.bad("it does not begin with GGUF")
    version, n, keys = f.number("I"), f.number("Q"), f.number("Q")
    if version not in (2, 3):
        raise CommonweightError(f"{path}: GGUF of version {version}; wanted 2 or 3, little endian: write it anew")
    if max(n, keys) > len(f.data) // _LEAST:
        raise f.bad(f"it counts {n:,} tensors and {keys:,} keys, more than it could hold")
    about: dict[str, Any] = {}
    for _ in range(keys):
        key = f.text()
        about[key] = f.value(f.number("I"))
    infos = [_info(f) for _ in range(n)]
    step = about.get("general.alignment", ALIGNMENT)
    if not isinstance(step, int) or not 1 <= step <= 1 << 16:
        raise f.bad(f"an alignment of {step!r}")
    start = -(-f.at // step) * step
    tensors: dict[str, Tensor] = {}
    for name, shape, kind, offset in infos:
        if name in tensors:
            raise f.bad(f"{name} is there twice")
        tensors[name] = _tensor(f, name, shape, kind, start + offset)
    return File(about, tensors)


def _info(f: _Bytes) -> tuple[str, tuple[int, ...], int, int]:
    name, dims = f.text(), f.number("I")
    if not 1 <= dims <= 4:
        raise f.bad(f"{name} has {counted(dims, 'dimension')}")
    shape = tuple(f.number("Q") for _ in range(dims))[::-1]
    return name, shape, f.number("I"), f.number("Q")


def _tensor(f: _Bytes, name: str, shape: tuple[int, ...], kind: int, at: int) -> Tensor:
    count = math.prod(shape)
    if kind in _DTYPES:
        size = count * _DTYPES[kind].itemsize
    elif kind == Q8_0 and shape[-1] % _BLOCK == 0:
        size = count // _BLOCK * _BYTES
    else:
        raise CommonweightError(f"{f.path}: {name} is of GGML type {kind}; read are F32, F16, BF16 and Q8_0")
    if not count or at + size > len(f.data):
        raise f.bad(f"{name} of {shape} goes past its end")
    raw = torch.frombuffer(bytearray(f.data[at : at + size]), dtype=torch.uint8)
    if kind in _DTYPES:
        return raw.view(_DTYPES[kind]).float().view(shape)
    blocks = raw.view(-1, _BYTES)
    scale = blocks[:, :2].contiguous().view(torch.float16).float()
    return (blocks[:, 2:].view(torch.int8).float() * scale).view(shape)


def write(keys: Mapping[str, str | float | list[int]], tensors: Mapping[str, Tensor]) -> bytes:
    """A file of version 3: texts, numbers as float32, lists of uint32, and tensors in float32."""
    out = [b"GGUF", struct.pack("<IQQ", 3, len(tensors), len(keys))]
    for key, value in keys.items():
        out.append(_text(key) + _value(value))
    offset, data = 0, []
    for name, tensor in tensors.items():
        t = tensor.detach().cpu().float().contiguous()
        raw = t.numpy().astype("<f4").tobytes()
        raw += bytes(-len(raw) % ALIGNMENT)
        out.append(_text(name) + struct.pack(f"<I{t.dim()}QIQ", t.dim(), *reversed(t.shape), F32, offset))
        offset, data = offset + len(raw), [*data, raw]
    head = b"".join(out)
    return b"".join([head, bytes(-len(head) % ALIGNMENT), *data])


def _value(value: str | float | list[int]) -> bytes:
    if isinstance(value, str):
        return struct.pack("<I", _TEXT) + _text(value)
    if isinstance(value, list):
        return struct.pack(f"<IIQ{len(value)}I", _ARRAY, 4, len(value), *value)
    return struct.pack("<If", 6, value)


def _text(value: str) -> bytes:
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw
