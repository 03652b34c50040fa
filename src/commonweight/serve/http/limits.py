"""Who may ask how much: the limits of keys, where they are counted."""

from __future__ import annotations

from typing import Protocol

from .errors import Refused
from .keys import Key, Keys


class Limits(Protocol):
    """within: before a call of so many answers. Raises: Refused (429). charge: tokens that it has taken, afterwards."""

    def within(self, key: Key, answers: int) -> None: ...
    def charge(self, key: Key, tokens: int) -> None: ...


class Counted:
    """Counted in this process."""

    def __init__(self, keys: Keys):
        self.keys = keys

    def within(self, key: Key, answers: int) -> None:
        for bucket, what in zip(self.keys.buckets(key), ("requests", "tokens")):
            if bucket is not None and (wait := bucket.wait()):
                raise Refused(429, f"this key's limit of {what}, {bucket.limit.text}, is reached", retry=wait)
        self.asked(key, answers)

    def asked(self, key: Key, answers: int) -> None:
        """So many more; less than nothing gives them back."""
        if (requests := self.keys.buckets(key)[0]) is not None:
            requests.charge(answers)

    def charge(self, key: Key, tokens: int) -> None:
        if (bucket := self.keys.buckets(key)[1]) is not None:
            bucket.charge(tokens)
