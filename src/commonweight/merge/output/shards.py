"""A sink on disk: safetensors files whose headers are known before the first number is, written in place."""

from __future__ import annotations

import math
import os
import shutil
import threading
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ...core import CommonweightError
from ..plan.files import EMPTY, Shard
from .writing import FULL, writing


class Shards:
    """Opens or makes the files in `folder`; `fresh`: whether any of them was not there in its full size."""

    def __init__(self, folder: Path, shards: Sequence[Shard]):
        self._folder, self._shards = folder, shards
        self._at: dict[str, tuple[int, int, torch.dtype, Path]] = {}
        self._handles: list[int] = []
        self.fresh = not all(self._there(s) for s in shards)
        if self.fresh:
            self._room(sum(s.size for s in shards))
        for s in shards:
            fd = os.open(folder / s.file, os.O_RDWR | os.O_CREAT, 0o644)
            self._handles.append(fd)
            if self.fresh:
                with writing(folder / s.file):
                    self._reserve(fd, s)
            _write(fd, s.head, 0, folder / s.file)
            at = len(s.head)
            for name, (dtype, shape) in s.tensors.items():
                self._at[name] = (fd, at, dtype, folder / s.file)
                at += math.prod(shape) * dtype.itemsize
        self._dirty, self._wake, self._ended = 0, threading.Event(), False
        self._failed: OSError | CommonweightError | None = None  # of the thread that brings things to the disk
        self._flusher = threading.Thread(target=self._flush, name="merge-flush", daemon=True)
        self._flusher.start()

    def write(self, name: str, start: int, values: Tensor) -> None:
        fd, at, dtype, path = self._at[name]
        data = values.contiguous().view(torch.uint8).numpy()
        _write(fd, data.data, at + start * dtype.itemsize, path)
        self._dirty += data.nbytes
        if self._dirty > 1 << 26:
            self._dirty = 0
            self._wake.set()

    def read(self, name: str, start: int, count: int) -> Tensor:
        """What was written, for a check."""
        fd, at, dtype, _ = self._at[name]
        out = torch.empty(count, dtype=dtype)
        view = out.view(torch.uint8).numpy().data
        os.preadv(fd, [view], at + start * dtype.itemsize)
        return out

    def seal(self, inputs: str) -> None:
        """Writes the inputs' digest into the headers and brings everything to the disk."""
        for fd, s in zip(self._handles, self._shards):
            place = s.head.find(EMPTY.encode())
            if place >= 0:
                _write(fd, inputs.encode(), place, self._folder / s.file)
        self._stop()
        if self._failed is not None:
            raise self._failed
        for fd, s in zip(self._handles, self._shards):
            with writing(self._folder / s.file):
                os.fsync(fd)

    def close(self) -> None:
        self._stop()
        for fd in self._handles:
            os.close(fd)
        self._handles = []

    def _stop(self) -> None:
        self._ended = True
        self._wake.set()
        self._flusher.join()

    def _flush(self) -> None:
        """Brings what is written to the disk on the way, so that nothing waits for it at the end."""
        while True:
            self._wake.wait()
            self._wake.clear()
            if self._ended:
                return
            try:
                for fd, s in zip(self._handles, self._shards):
                    with writing(self._folder / s.file):
                        os.fdatasync(fd) if hasattr(os, "fdatasync") else os.fsync(fd)
            except (OSError, CommonweightError) as e:
                self._failed = e
                return

    def _there(self, s: Shard) -> bool:
        path = self._folder / s.file
        return path.is_file() and path.stat().st_size == s.size

    def _room(self, wanted: int) -> None:
        free = shutil.disk_usage(self._folder).free
        if wanted > free:
            raise CommonweightError(
                f"{self._folder.parent}: {wanted:,} bytes are to be written, {free:,} are free; make room first"
            )

    def _reserve(self, fd: int, s: Shard) -> None:
        """The whole file at once: no room is found out now and not at its end."""
        os.ftruncate(fd, 0)
        try:
            os.posix_fallocate(fd, 0, s.size)
        except (OSError, AttributeError) as e:
            if isinstance(e, OSError) and e.errno in FULL:
                raise
            os.ftruncate(fd, s.size)


def _write(fd: int, data: bytes | memoryview, at: int, path: Path) -> None:
    view = memoryview(data)
    with writing(path):
        while len(view):
            n = os.pwrite(fd, view, at)
            view, at = view[n:], at + n
