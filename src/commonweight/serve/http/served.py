"""What a server stands before: an engine of a language model, or one of an encoder."""

from __future__ import annotations

from typing import Any, Protocol

from ...host import Host
from ..tenants import Tenants


class Served(Protocol):
    """What both have."""

    host: Host
    tokenizer: Any
    tenants: Tenants
    length: int | None

    @property
    def vocabulary(self) -> int: ...
    @property
    def running(self) -> int: ...
    @property
    def waiting(self) -> int: ...
    @property
    def closed(self) -> bool: ...
    def unload(self, name: str) -> bool: ...
