"""Calls of an application without a network: many at once, and clients that hang up."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Coroutine, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Said:
    """What came back. gone: the client hung up before the end."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    raw: bytes = b""
    gone: bool = False

    @property
    def json(self) -> Any:
        return json.loads(self.raw)

    @property
    def events(self) -> list[Any]:
        """Of a stream; the last one is "[DONE]"."""
        lines = [x.removeprefix("data: ") for x in self.raw.decode().splitlines() if x.startswith("data: ")]
        return [x if x == "[DONE]" else json.loads(x) for x in lines]


class Calls:
    """An application that runs in a thread's event loop, from its start to its end."""

    def __init__(self, app: Any):
        self.app, self.loop = app, asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="soak", daemon=True)
        self._thread.start()
        self._life = app.router.lifespan_context(app)
        self.wait(self._life.__aenter__())

    def wait(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(120)

    def close(self) -> None:
        self.wait(self._life.__aexit__(None, None, None))
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(30)
        self.loop.close()

    def start(self, method: str, path: str, body: Any = None, hang_up: int | None = None, **headers: str) -> Future:
        """A `Said` to come. body: bytes, or what becomes JSON. hang_up: after so many parts of it, 0: at once."""
        return asyncio.run_coroutine_threadsafe(self._call(method, path, body, hang_up, headers), self.loop)

    def call(self, method: str, path: str, body: Any = None, **headers: str) -> Said:
        return self.start(method, path, body, **headers).result(120)

    async def _call(
        self, method: str, path: str, body: Any, hang_up: int | None, headers: Mapping[str, str]
    ) -> Said:  # fmt: skip
        raw = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode("utf-8", "replace")
        kind = "application/octet-stream" if isinstance(body, bytes) else "application/json"
        told = {"host": "localhost", "content-type": kind, "content-length": str(len(raw)), **headers}
        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "path": path,
            "raw_path": path.encode(), "query_string": b"", "scheme": "http", "root_path": "",
            "headers": [(k.encode("latin-1"), v.encode("latin-1")) for k, v in told.items()],
            "client": ("127.0.0.1", 1), "server": ("localhost", 80), "state": {},
        }  # fmt: skip
        said, gone, sent = Said(), asyncio.Event(), False
        if hang_up == 0:
            self.loop.call_later(0.002, gone.set)

        async def receive() -> dict[str, Any]:
            nonlocal sent
            if not sent:
                sent = True
                return {"type": "http.request", "body": raw, "more_body": False}
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            nonlocal hang_up
            if gone.is_set():  # as uvicorn: what is sent to nobody is dropped
                return
            if message["type"] == "http.response.start":
                said.status = message["status"]
                said.headers = {k.decode("latin-1"): v.decode("latin-1") for k, v in message["headers"]}
                return
            said.raw += message.get("body", b"")
            if hang_up:
                hang_up -= 1
                if not hang_up:
                    gone.set()

        await self.app(scope, receive, send)
        said.gone = gone.is_set()
        gone.set()
        return said
