"""Answers that wait for the end of a round, as they came: what is over 4 MB of them lies in a file."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence
from tempfile import SpooledTemporaryFile
from typing import Any, overload

from safetensors.torch import load

from .message import Table, spread
from .registry import Reply

MOST = 1 << 22  # bytes in memory; ours


class Answers(Mapping[int, Reply]):
    """client -> its `Reply`, read again each time that it is asked for: ten thousand answers of tensors would be a
    hundred megabytes of objects beside their numbers. `put` takes what has been looked at."""

    def __init__(self) -> None:
        self.file: Any = SpooledTemporaryFile(max_size=MOST)
        weakref.finalize(self, self.file.close)
        self.at: dict[int, tuple[int, int, int, Table]] = {}  # client -> first byte, bytes, rows, table
        self.end = 0

    def put(self, client: int, rows: int, data: bytes, table: Table) -> None:
        last = next(reversed(self.at.values()), None)
        if last is not None and last[3] == table:
            table = last[3]  # one for all, where all have the same
        self.file.seek(self.end)
        self.file.write(data)
        self.at[client] = self.end, len(data), rows, table
        self.end += len(data)

    def drop(self, client: int) -> None:
        """Its bytes stay in the file."""
        del self.at[client]

    def __getitem__(self, client: int) -> Reply:
        first, size, rows, table = self.at[client]
        self.file.seek(first)
        return Reply(client, rows, spread(load(self.file.read(size)), table))

    def __iter__(self) -> Iterator[int]:
        return iter(self.at)

    def __len__(self) -> int:
        return len(self.at)


class InOrder(Sequence[Reply]):
    """Answers in the order of their clients."""

    def __init__(self, answers: Mapping[int, Reply]):
        self.answers, self.clients = answers, sorted(answers)

    @overload
    def __getitem__(self, index: int) -> Reply: ...
    @overload
    def __getitem__(self, index: slice) -> list[Reply]: ...
    def __getitem__(self, index: int | slice) -> Reply | list[Reply]:
        if isinstance(index, slice):
            return [self.answers[c] for c in self.clients[index]]
        return self.answers[self.clients[index]]

    def __len__(self) -> int:
        return len(self.clients)
