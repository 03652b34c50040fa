"""Before several replicas: who asks, how much, which of them is asked, and what is said when one is lost."""

from __future__ import annotations

import asyncio
import hashlib
import json
from contextlib import aclosing
from typing import Any
from urllib.parse import unquote

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import Message, Receive, Scope, Send

from ..http import traces
from ..http.asking import Gone, while_there
from ..http.door import UPLOAD, Door
from ..http.elsewhere import PATHS
from ..http.errors import Refused
from ..http.keys import Key, Keys
from ..http.limits import Counted
from ..http.logs import say
from ..http.metrics import refusals
from ..http.operations import hidden
from ..http.settings import Settings
from ..http.write import DONE, event
from .call import Call, Lost, Replicas
from .gathered import gathered

_KEPT = ("type", "asgi", "http_version", "method", "scheme", "path", "raw_path", "query_string", "root_path", "headers",
         "client", "server")  # fmt: skip
_WORK = {path for paths in PATHS.values() for path in paths}
_QUICK = {"/health": 5.0, "/ready": 5.0}  # seconds in which a replica must be there
_LOST = "the replica that worked on this has ended; try again"
_STOPPING = "the server is stopping; this answer was not finished"


def fronted(replicas: Replicas, settings: Settings) -> Starlette:
    """The application. `app.state.service` is the `Front`."""
    keys, told = Keys(settings.keys, settings.admin), traces.configured()
    front = Front(replicas, settings, keys)
    app = Starlette()
    app.state.service = front
    app.mount("/", front)
    app.add_middleware(Door, settings=settings, keys=keys, refused=front.refused, traces=told)
    return app


class Front:
    """An ASGI application behind the door. Limits are counted here; a call counts as one answer until its replica says
    how many it has. draining: told to stop; calls that run may end."""

    def __init__(self, replicas: Replicas, settings: Settings, keys: Keys):
        self.replicas, self.settings, self.limits = replicas, settings, Counted(keys)
        self.registry = CollectorRegistry()
        self.refused = refusals(self.registry, {"model_name": settings.name, "engine": "front"})
        self.open: set[asyncio.Future] = set()
        self.draining = self.stopped = False

    def stop(self) -> None:
        """Ends every call that runs."""
        self.stopped = True
        for work in list(self.open):
            work.cancel()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path, key, told = scope["path"], scope["state"]["key"], scope["state"]["told"]
        if path == "/ready" and self.draining:
            raise Refused(503, "the server is stopping")
        if path == "/metrics" and scope["method"] == "GET":
            hidden(key)
            return await PlainTextResponse(await self._metrics(), media_type=CONTENT_TYPE_LATEST)(scope, receive, send)
        request = Request(scope, receive)
        body = b"".join([part async for part in request.stream()])
        work = scope["method"] == "POST" and path in _WORK
        if work:
            if self.draining:
                raise Refused(503, "the server is stopping")
            self.limits.within(key, 1)
        call = Call({k: scope[k] for k in _KEPT if k in scope}, body, key, told["id"])
        relay = _Relay(self, call, send, told, key if work else None)
        await self._guarded(relay, request, _QUICK.get(path))

    async def _guarded(self, relay: _Relay, request: Request, quick: float | None) -> None:
        """Until it has ended, the client hangs up, or the server stops."""
        work = asyncio.ensure_future(asyncio.wait_for(relay.run(), quick))
        self.open.add(work)
        try:
            await while_there(request, work)
        except Gone:
            pass
        except TimeoutError as e:
            raise Refused(503, "no replica answers") from e
        except asyncio.CancelledError:
            if not self.stopped:
                raise
            await relay.broken(_STOPPING)
        finally:
            self.open.discard(work)

    async def _metrics(self) -> bytes:
        found = await self.replicas.metrics()
        own = generate_latest(self.registry).decode("utf-8")
        return gathered([*found, own, f"# TYPE commonweight:replicas gauge\ncommonweight:replicas {len(found)}\n"])


class _Relay:
    """One call, asked once more where its replica is lost before anything of the answer was sent. limited: the key that
    one answer was counted for, until the replica says how many."""

    def __init__(self, front: Front, call: Call, send: Send, told: dict[str, Any], limited: Key | None):
        self.front, self.call, self.told, self.limited = front, call, told, limited
        self._send, self._begun, self._over = send, False, False
        self._start: Message | None = None

    async def run(self) -> None:
        """Raises: Refused where no replica could answer."""
        try:
            await self._once()
        except Lost as e:
            # whether a change was made before, nobody knows
            again = not self._begun and self.call.scope["method"] in ("GET", "HEAD", "POST")
            say("lost", 30, id=self.call.id, error=str(e), again=again)
            if not again:
                return await self.broken(_LOST)
            self._start = None
            try:
                await self._once()
            except Lost as e:
                say("lost", 30, id=self.call.id, error=str(e), again=False)
                await self.broken(_LOST)

    async def _once(self) -> None:
        async with aclosing(self.front.replicas.ask(self.call, self._name())) as parts:
            async for messages, spent, told in parts:
                self._charge(spent)
                for message in messages:
                    await self._pass(message)
                self.told.update(told or {})

    def _charge(self, spent: Any) -> None:
        if self.limited is not None:
            self.front.limits.asked(self.limited, -1)
            self.limited = None
        for key, answers, tokens in spent:
            self.front.limits.asked(key, answers)
            self.front.limits.charge(key, tokens)

    async def _pass(self, message: Message) -> None:
        """The head of an answer waits for the first part of its body."""
        if message["type"] == "http.response.start":
            self._start = message
            return
        if not self._begun and self._start is not None:
            self._begun = True
            await self._send(self._start)
        self._over = not message.get("more_body")
        await self._send(message)

    async def broken(self, why: str) -> None:
        """Says that there will be no more. Raises: Refused where nothing was said yet; Lost where it cannot be said."""
        error = Refused(503, why, retry=1.0)
        if not self._begun:
            raise error
        headers = dict((self._start or {}).get("headers", ()))
        if self._over:
            return
        if not headers.get(b"content-type", b"").startswith(b"text/event-stream"):
            raise Lost(why)  # the connection is cut, so that nobody takes a part for the whole
        if self.call.scope["path"] == "/v1/responses":
            told = {"type": "error", "code": "server_error", "message": why, "param": None, "sequence_number": 0}
            last = event(told, "error")
        else:
            last = event(error.body) + DONE
        await self._send({"type": "http.response.body", "body": last, "more_body": False})

    def _name(self) -> str:
        """Of the tenant that is asked, as a digest; "" for the plain model, and where none is named."""
        name = _named(self.call.scope["path"], self.call.body)
        if name is None or name in self.front.settings.names:
            return ""
        return hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()


def _named(path: str, body: bytes) -> str | None:
    if path.startswith(UPLOAD):
        return unquote(path.removeprefix(UPLOAD))
    try:
        said = json.loads(body) if body else None
    except (ValueError, RecursionError):  # the replica says what is wrong with it
        return None
    found = said.get("model") if isinstance(said, dict) else None
    return found if isinstance(found, str) else None
