"""Where tensors come from: a state dict in memory, or safetensors on disk; read a part at a time."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from ...core import CommonweightError
from ...core.readable import read_object
from .safefile import File

INDEX = "model.safetensors.index.json"


class Source(Protocol):
    """A model by its tensors' names. label: how errors call it. files: what it reads of, in memory none."""

    label: str
    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, torch.dtype]
    files: tuple[Path, ...]

    def flat(self, name: str, start: int, count: int) -> Tensor:
        """Elements start .. start + count of a tensor, in its dtype, on the CPU; not to be written into."""
        ...

    def read(self, name: str) -> Tensor:
        """The whole tensor."""
        ...

    def where(self, name: str) -> str:
        """The model, and the file of the tensor where there are several."""
        ...

    def ahead(self, name: str) -> None:
        """The tensor will be read soon."""
        ...


class Read(NamedTuple):
    """A tensor of a source."""

    source: Source
    name: str

    @property
    def dtype(self) -> torch.dtype:
        return self.source.dtypes[self.name]


@runtime_checkable
class Holding(Protocol):
    """A source that makes its numbers: it has more in memory than what it gives."""

    def held(self, count: int, threads: int) -> int:
        """Bytes at most, while so many threads read `count` elements at a time."""
        ...


def held(source: Source, count: int, threads: int) -> int:
    """Bytes that a source has in memory beside what it gives; what it was given is not its own."""
    return source.held(count, threads) if isinstance(source, Holding) else 0


class Memory:
    """A state dict."""

    files: tuple[Path, ...] = ()

    def __init__(self, label: str, tensors: Mapping[str, Tensor]):
        self.label, self._tensors = label, tensors
        self.shapes: Mapping[str, tuple[int, ...]] = {n: tuple(t.shape) for n, t in tensors.items()}
        self.dtypes: Mapping[str, torch.dtype] = {n: t.dtype for n, t in tensors.items()}

    def flat(self, name: str, start: int, count: int) -> Tensor:
        t = self._tensors[name].detach()
        if t.is_contiguous():
            return t.view(-1)[start : start + count].cpu()
        width = math.prod(t.shape[1:])
        first = start // width
        rows = t[first : -(-(start + count) // width)].reshape(-1)
        return rows[start - first * width :][:count].cpu()

    def read(self, name: str) -> Tensor:
        return self._tensors[name]

    def where(self, name: str) -> str:
        return self.label

    def ahead(self, name: str) -> None:
        pass


class Files:
    """safetensors files, each tensor in one of them. homes: tensor -> name of its file, as an index has it. unread:
    other files beside them."""

    def __init__(
        self,
        label: str,
        files: list[Path],
        homes: Mapping[str, str] = MappingProxyType({}),
        unread: tuple[str, ...] = (),
    ):
        self.label, self.files, self.unread = label, tuple(files), unread
        self._home: dict[str, File] = {}
        for path in files:
            file = File(path, label)
            for name in file.entries:
                if name in self._home:
                    raise CommonweightError(f"{label}: {name} is in {self._home[name].path.name} and in {path.name}")
                self._home[name] = file
        for name, home in homes.items():
            if name not in self._home or self._home[name].path.name != home:
                raise CommonweightError(
                    f"{name}: {label}: {INDEX} has it in {home}, which does not hold it; copy the model again"
                )
        self.shapes: Mapping[str, tuple[int, ...]] = {n: f.entries[n].shape for n, f in self._home.items()}
        self.dtypes: Mapping[str, torch.dtype] = {n: f.entries[n].dtype for n, f in self._home.items()}

    def flat(self, name: str, start: int, count: int) -> Tensor:
        return self._home[name].read(name, start, count)

    def read(self, name: str) -> Tensor:
        return self.flat(name, 0, math.prod(self.shapes[name])).view(self.shapes[name])

    def where(self, name: str) -> str:
        return f"{self.label}, {self._home[name].path.name}," if len(self.files) > 1 else self.label

    def ahead(self, name: str) -> None:
        self._home[name].ahead(name)


def config_of(path: Path) -> dict[str, Any]:
    """What config.json says, that of the folder or the one beside the file; nothing where there is none.

    Raises: CommonweightError when it is there and cannot be read: how weights are quantised would be lost.
    """
    return read_json((path if path.is_dir() else path.parent) / "config.json")


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object from a file; empty where there is no file. Raises: CommonweightError for anything else."""
    return read_object(file) if file.is_file() else {}
