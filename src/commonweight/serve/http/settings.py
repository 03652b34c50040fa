"""What a server is told at its start, and what it must not be told together."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path

from ...core import CommonweightError

BASE = "base"  # the plain model, in the place of a tenant's name
LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Settings:
    """name: the base model's own name, which stands for it beside "base".

    keys: a file of keys (`commonweight keys add`); None: who reaches the server may ask. admin: the key that may change
    tenants; without one, and without a file that has one, they can be changed from this machine alone, and only where
    nothing else listens (`loopback`). loopback: whether the server is reached from its own machine alone.

    max_body: bytes of a request, max_upload: of a tenant's file. max_tokens: new tokens of one answer, at most; None:
    as many as the model has room for. timeout: seconds after which an answer ends with what it has. drain: seconds that
    running answers have when the server is told to stop. log_prompts: prompts and answers stand in the log.
    watch: seconds between two looks at the store for new versions. tool_parser: how the model writes calls of tools:
    "hermes", "llama3", "mistral", or "auto", as its chat template says. shared: one of several servers of one store,
    so that tenants are changed there alone.
    """

    name: str = "model"
    keys: Path | None = None
    admin: str | None = None
    loopback: bool = True
    max_body: int = 4 << 20
    max_upload: int = 1 << 30
    max_tokens: int | None = None
    timeout: float = 600.0
    drain: float = 30.0
    log_prompts: bool = False
    watch: float = 2.0
    tool_parser: str = "auto"
    shared: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """Of the plain model: "base", its own name, and the last part of that."""
        return tuple(dict.fromkeys((BASE, self.name, self.name.rstrip("/").rsplit("/", 1)[-1])))


def loopback(host: str) -> bool:
    """Whether who listens there is reached from this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def guarded(host: str, keys: Path | None, insecure: bool) -> None:
    """Raises: CommonweightError where anybody on the network could ask."""
    if keys is None and not insecure and not loopback(host):
        raise CommonweightError(
            f"--host {host} is reached from other machines, and no --api-keys guard the server; make a file of keys by "
            "`commonweight keys add NAME --file keys.json`, listen on 127.0.0.1, or say --insecure"
        )
