"""One of several processes that answer: an engine and its application, asked by a front in place of a network."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from typing import Any, NamedTuple

from ..encoder import Encoder
from ..engine import Engine
from ..http.app import application
from ..http.keys import Key
from ..http.service import Service
from ..http.settings import Settings
from .call import Call, Came, Spent


class Guarded(NamedTuple):
    """Of the front's keys what a replica has to know, see `http.keys.Guard`."""

    guarded: bool
    administered: bool


class Told:
    """Limits that the front counts: it is told what was used up."""

    def __init__(self) -> None:
        self._answers: Counter[Key] = Counter()
        self._tokens: Counter[Key] = Counter()

    def within(self, key: Key, answers: int) -> None:
        if key.requests is not None:
            self._answers[key] += answers

    def charge(self, key: Key, tokens: int) -> None:
        if key.tokens is not None:
            self._tokens[key] += tokens

    def taken(self) -> list[Spent]:
        """Since the last time."""
        found = [Spent(k, self._answers[k], self._tokens[k]) for k in {*self._answers, *self._tokens}]
        self._answers.clear()
        self._tokens.clear()
        return found


class Replica:
    """number: what its metrics are labelled with. open: within the loop that `answer` will be called in."""

    def __init__(self, engine: Engine | Encoder, settings: Settings, guard: Guarded, number: str):
        self.engine, self.limits = engine, Told()
        self.service = Service(engine, settings, guard, self.limits, number)
        self.app = application(self.service, engine)
        self._stack = AsyncExitStack()

    async def open(self) -> None:
        await self._stack.enter_async_context(self.app.router.lifespan_context(self.app))

    async def close(self) -> None:
        await self._stack.aclose()
        await asyncio.to_thread(self.engine.close)

    def metrics(self) -> str:
        return self.service.metrics.text.decode("utf-8")

    async def answer(self, call: Call) -> AsyncGenerator[Came, None]:
        """What has come together is told together. Closing it early ends the call, as a client does that hangs up."""
        told: dict[str, Any] = {"id": call.id}
        scope = {**call.scope, "state": {"told": told, "key": call.key}}
        messages: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        body, gone = [{"type": "http.request", "body": call.body, "more_body": False}], asyncio.Event()

        async def receive() -> Any:
            if body:
                return body.pop()
            await gone.wait()
            return {"type": "http.disconnect"}

        work = asyncio.ensure_future(self.app(scope, receive, messages.put))  # type: ignore[arg-type]
        work.add_done_callback(lambda _: messages.put_nowait(None))
        try:
            over = False
            while not over:
                batch = [await messages.get()]
                while not messages.empty():
                    batch.append(messages.get_nowait())
                over = batch[-1] is None
                yield Came([m for m in batch if m is not None], self.limits.taken(), told if over else None)
        finally:
            gone.set()
            if not work.done():  # it sees that its client is gone
                await asyncio.wait({work}, timeout=5)
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)  # the application has answered and logged its errors
