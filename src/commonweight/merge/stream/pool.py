"""Threads that work on a list in order, a few items ahead of whoever takes the results."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import TypeVar

import torch

from .memory import keep_pieces

A = TypeVar("A")
B = TypeVar("B")


def _start() -> None:
    torch.set_num_threads(1)  # of this thread: sums inside an operation have one order, whatever the machine


class Pool:
    """`map` keeps the order of its items; an error stops it and is raised where its item's turn is."""

    def __init__(self, threads: int):
        keep_pieces()
        self.threads = threads
        self._before = torch.get_num_threads()
        self._workers = ThreadPoolExecutor(threads, thread_name_prefix="merge", initializer=_start)

    def __enter__(self) -> Pool:
        torch.set_num_threads(1)  # torch's own would wait by turning, each on a processor, while the workers work
        return self

    def __exit__(self, kind: type | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._workers.shutdown(cancel_futures=True)
        torch.set_num_threads(self._before)  # a worker's setting is also the default of threads to come

    def alone(self, f: Callable[[A], B], items: Iterable[A]) -> Iterator[B]:
        """One item at a time, in this thread; torch's own threads work on it."""
        for item in items:
            torch.set_num_threads(self._before)
            try:
                found = f(item)
            finally:
                torch.set_num_threads(1)
            yield found

    def map(self, f: Callable[[A], B], items: Iterable[A]) -> Iterator[B]:
        ahead: deque = deque()
        try:
            for item in items:
                ahead.append(self._workers.submit(f, item))
                if len(ahead) >= 2 * self.threads:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            for left in ahead:
                left.cancel()
            for left in ahead:
                if not left.cancelled():
                    left.exception()  # nothing runs on when this is over


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
