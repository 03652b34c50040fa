"""Before every call: who asks, how much is sent, and what stands of it in the log. Plain ASGI."""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from collections.abc import Callable
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .errors import Refused
from .keys import ANYBODY, Key, Keys
from .logs import say
from .settings import Settings
from .traces import Traces

OPEN = {"/health", "/ready", "/openapi.json", "/"}  # whoever reaches the server may ask these
UPLOAD = "/v1/tenants/"


class Door:
    """A request's id is the client's, where that is short and plain, or a new one; the answer carries it. refused: is
    told the code of each error."""

    def __init__(
        self, app: ASGIApp, settings: Settings, keys: Keys, refused: Callable[[int], None], traces: Traces | None = None
    ):
        self.app, self.settings, self.keys, self.refused, self.traces = app, settings, keys, refused, traces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        began, headers = time.monotonic(), _headers(scope)
        given = headers.get("x-request-id", "")
        found = given if re.fullmatch(r"[A-Za-z0-9._-]{1,64}", given) else secrets.token_hex(12)
        told: dict[str, Any] = {"id": found, "method": scope["method"], "path": scope["path"]}
        scope.setdefault("state", {}).update(told=told, key=None)
        status, traces = 0, None if scope["path"] in OPEN else self.traces
        span = None if traces is None else traces.begin(scope["method"], scope["path"], headers)

        async def sent(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", []), (b"x-request-id", found.encode("ascii"))]
            await send(message)

        try:
            scope["state"]["key"] = key = self._key(scope, headers)
            told["key"] = key.name or None
            limited = self._limited(scope, headers, receive)
            await self.app(scope, limited, sent)
        except Refused as e:
            if status:  # pyrefly: ignore[redundant-condition]; `sent` has set it
                raise
            await refuse(e, sent)
        finally:
            if status >= 400:
                self.refused(status)
            if traces is not None:
                traces.end(span, status, told)
            if scope["path"] not in OPEN or status >= 400:
                say("request", status=status or None, seconds=round(time.monotonic() - began, 4), **told)

    def _key(self, scope: Scope, headers: dict[str, str]) -> Key:
        kind, _, secret = headers.get("authorization", "").partition(" ")
        found = self.keys.find(secret.strip() if kind.lower() == "bearer" and secret.strip() else None)
        if found is not None:
            return found
        if not self.keys.guarded or scope["path"] in OPEN:
            return ANYBODY
        if not secret:
            raise Refused(401, "no key: send Authorization: Bearer KEY")
        raise Refused(401, "this key is not known here")

    def _limited(self, scope: Scope, headers: dict[str, str], receive: Receive) -> Receive:
        """The same, up to the most bytes that a body may have, and while each part comes within the limit of time."""
        upload = scope["method"] == "PUT" and scope["path"].startswith(UPLOAD)
        most = self.settings.max_upload if upload else self.settings.max_body
        large = Refused(413, f"the body has more than {most:,} bytes, the most that this server takes")
        length = headers.get("content-length", "")
        if length.isdigit() and int(length) > most:
            raise large
        came, whole, limit = 0, False, self.settings.timeout
        late = Refused(408, f"{limit:g} seconds went by without more of the body")

        async def limited() -> Message:
            nonlocal came, whole
            try:
                message = await (receive() if whole else asyncio.wait_for(receive(), limit))
            except TimeoutError as e:
                raise late from e
            whole = whole or message["type"] != "http.request" or not message.get("more_body", False)
            if message["type"] == "http.request":
                came += len(message.get("body", b""))
                if came > most:
                    raise large
            return message

        return limited


def _headers(scope: Scope) -> dict[str, str]:
    return {k.decode("latin-1").lower(): v.decode("latin-1") for k, v in scope["headers"]}


async def refuse(e: Refused, send: Send) -> None:
    headers = {"content-type": "application/json", "content-length": str(len(e.content)), **e.headers}
    raw = [(k.encode("latin-1"), v.encode("latin-1")) for k, v in headers.items()]
    await send({"type": "http.response.start", "status": e.status, "headers": raw})
    await send({"type": "http.response.body", "body": e.content})
