"""A stream of server-sent events, which ends its call however it ends itself."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import anyio
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send


class Events(StreamingResponse):
    """running: closed when the last event is sent, or the client has hung up, or nothing was ever sent."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[bytes], running: AsyncExitStack):
        super().__init__(events, headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        self._running = running

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            with anyio.CancelScope(shield=True):
                await self._running.aclose()
