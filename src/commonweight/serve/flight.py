"""Work that is done once, whoever asks for it meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Any


class Flights:
    """flights(key, work): what `work()` gives. While it runs, others who ask for the same key wait for it and get the
    same; other keys are not held back. An error of work that had begun before one asked may be over by then: who waited
    for it asks once more, and gets what work that begins now gives."""

    def __init__(self) -> None:
        self._open: dict[Hashable, Future] = {}
        self._lock = threading.Lock()

    def __contains__(self, key: Hashable) -> bool:
        return key in self._open

    def __call__(self, key: Hashable, work: Callable[[], Any]) -> Any:
        before = True  # whether the work began before this call
        while True:
            with self._lock:
                flight = self._open.get(key)
                mine = flight is None
                if flight is None:
                    flight = self._open[key] = Future()
            if mine:
                break
            if flight.exception() is None or not before:
                return flight.result()
            before = False
        try:
            found = work()
        except BaseException as e:
            self._land(key)
            flight.set_exception(e)
            raise
        self._land(key)
        flight.set_result(found)
        return found

    def _land(self, key: Hashable) -> None:
        with self._lock:
            del self._open[key]
