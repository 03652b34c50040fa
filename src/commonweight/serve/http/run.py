"""A server that listens, and that ends when it is told to: what runs may end first."""

from __future__ import annotations

import asyncio
import gc
import socket
from collections.abc import Collection
from types import FrameType
from typing import Any, Protocol

import uvicorn

from ...core import CommonweightError
from .logs import say
from .settings import Settings


def bound(host: str, port: int) -> socket.socket:
    """A socket that listens there, before a model is loaded for it. Raises: CommonweightError where it cannot."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    found = socket.socket(family, socket.SOCK_STREAM)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind((host.strip("[]"), port))
        found.listen(2048)
    except (OSError, OverflowError) as e:
        found.close()
        why = getattr(e, "strerror", None) or str(e)
        raise CommonweightError(f"cannot listen on {host}, port {port}: {why}; choose another --port or --host") from e
    found.set_inheritable(True)
    return found


class Stops(Protocol):
    """What a server stands before. open: calls that run. stop: ends them all."""

    settings: Settings
    draining: bool

    @property
    def open(self) -> Collection[Any]: ...
    def stop(self) -> None: ...


class Server(uvicorn.Server):
    """SIGTERM and SIGINT: no new connections; calls that run may end within `drain` seconds, and are ended then. A
    second signal ends them at once."""

    def __init__(self, config: uvicorn.Config, service: Stops):
        super().__init__(config)
        self.service = service

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.service.draining = True
        if self.should_exit:
            self.force_exit = True
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        say("stopping", running=len(self.service.open))
        self.service.draining = True
        end = asyncio.get_running_loop().call_later(self.service.settings.drain, self.service.stop)
        try:
            await super().shutdown(sockets)
            if self.force_exit:  # uvicorn leaves the app's own end out then, and it would be cut off where it waits
                await self.lifespan.shutdown()
        finally:
            end.cancel()


def server(app: Any, drain: float) -> Server:
    config = uvicorn.Config(
        app, log_config=None, access_log=False, server_header=False, timeout_graceful_shutdown=int(drain) + 5,
        timeout_keep_alive=30, h11_max_incomplete_event_size=64 << 10, lifespan="on", ws="none",
    )  # fmt: skip
    return Server(config, app.state.service)


def run(app: Any, sock: socket.socket) -> None:
    """Serves until a signal. What is there by now stays: collections of garbage leave it out, which would hold all
    calls up for a quarter of a second each (450,000 objects beside a model of 30 layers)."""
    gc.collect()
    gc.freeze()
    server(app, app.state.service.settings.drain).run([sock])
