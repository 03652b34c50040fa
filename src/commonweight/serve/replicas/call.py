"""What travels between the front and a replica, and what a front wants of its replicas."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any, NamedTuple, Protocol

from ..http.keys import Key


class Call(NamedTuple):
    """A call of HTTP that has come whole. scope: of ASGI, what of it is plain data. id: for the logs."""

    scope: dict[str, Any]
    body: bytes
    key: Key
    id: str


class Spent(NamedTuple):
    """What a key has used up of its limits since this was told last."""

    key: Key
    answers: int
    tokens: int


class Came(NamedTuple):
    """A part of an answer. messages: of ASGI. spent: by whichever calls of the replica. told: what the log says of the
    call, with the last part."""

    messages: list[dict[str, Any]]
    spent: list[Spent]
    told: dict[str, Any] | None


class Lost(Exception):
    """The replica that worked on a call is no more, or cannot be reached."""


class Replicas(Protocol):
    """ask: the parts of an answer; calls with one name go to one replica while it has room, "" goes anywhere. Raises:
    Lost. metrics: the text of each replica's."""

    def ask(self, call: Call, name: str) -> AsyncGenerator[Came, None]: ...
    async def metrics(self) -> list[str]: ...
