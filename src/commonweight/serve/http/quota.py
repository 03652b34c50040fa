"""How often, and how much: a bucket that fills evenly, as `60/min`."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

from ...core import CommonweightError

_SECONDS = {"s": 1, "sec": 1, "second": 1, "min": 60, "minute": 60, "m": 60, "h": 3600, "hour": 3600, "d": 86400, "day": 86400}  # fmt: skip  # noqa: E501


class Limit(NamedTuple):
    """So much in so many seconds."""

    most: int
    seconds: int
    text: str


def limit(text: str) -> Limit:
    """Of `60/min`, `5/s`, `100000/h`. Raises: CommonweightError."""
    found = re.fullmatch(r"([1-9][0-9]{0,11})/([a-z]+)", text.strip())
    if not found or found[2] not in _SECONDS:
        raise CommonweightError(f"limit {text!r}: wanted a number and a time, as in 60/min, 5/s, 1000/h or 100000/day")
    return Limit(int(found[1]), _SECONDS[found[2]], text.strip())


class Bucket:
    """Holds `most`, and fills within `seconds`. take: by one, before; charge: afterwards, may leave less than nothing,
    and nothing is given until it has filled again."""

    def __init__(self, limit: Limit, now: Callable[[], float] = time.monotonic):
        self.limit, self._now = limit, now
        self._left, self._at = float(limit.most), now()
        self._lock = threading.Lock()

    def _fill(self) -> None:
        now, rate = self._now(), self.limit.most / self.limit.seconds
        self._left = min(self.limit.most, self._left + (now - self._at) * rate)
        self._at = now

    def wait(self, least: float = 1.0) -> float:
        """Seconds until so much is there; 0 where it is."""
        with self._lock:
            self._fill()
            return max(0.0, (least - self._left) * self.limit.seconds / self.limit.most)

    def charge(self, n: float) -> None:
        with self._lock:
            self._fill()
            self._left -= n
