"""From an event loop to the engine's thread and back: the requests of one call as they run."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import Executor
from functools import partial
from typing import Any

from starlette.requests import Request as Call

from ..edition import Edition
from ..engine import Engine, Stream
from ..request import Answer, Piece, Request
from ..ticket import Ticket, joined
from .write import Usage

Came = tuple[int, Piece, float]  # which request, its piece, when


class Asked:
    """streams: of each request, in order. Iterating gives (which request, piece) as they come, until all have ended.
    watch: told of each piece, the ticket that it is of, and when it came. mute: nothing of the answers is
    handed on, but that they have ended."""

    def __init__(self, streams: Sequence[Stream], pieces: asyncio.Queue[Came]):
        self.streams, self._pieces = streams, pieces
        self.mute = False
        self.got: list[list[list[Piece]]] = [[[] for _ in s.tickets] for s in streams]
        self.watch: Callable[[Ticket, Piece, float], None] = lambda ticket, piece, at: None

    async def __aiter__(self) -> AsyncIterator[tuple[int, Piece]]:
        left = len(self.tickets)
        while left:
            i, piece, at = await self._pieces.get()
            if self.mute:
                reason = "length" if piece.finish_reason == "stop" else piece.finish_reason
                piece = Piece(index=piece.index, finish_reason=reason, error=piece.error)
            self.watch(self.streams[i].tickets[piece.index], piece, at)
            self.got[i][piece.index].append(piece)
            left -= piece.finish_reason is not None
            yield i, piece

    @property
    def tickets(self) -> list[Ticket]:
        return [t for s in self.streams for t in s.tickets]

    async def answers(self) -> list[list[Answer]]:
        """All of them, when they have ended."""
        async for _ in self:
            pass
        return [[joined(t, pieces) for t, pieces in zip(s.tickets, found)] for s, found in zip(self.streams, self.got)]

    def cancel(self) -> None:
        for stream in self.streams:
            stream.cancel()

    @property
    def usage(self) -> Usage:
        """So far. A prompt counts once, however many answers there are to it."""
        return Usage(
            sum(len(s.tickets[0].prompt) for s in self.streams),
            sum(len(p.tokens) for found in self.got for pieces in found for p in pieces),
            sum(s.tickets[0].cached for s in self.streams),
        )


async def ask(engine: Engine, requests: Sequence[Request], pool: Executor, edition: Edition | None) -> Asked:
    """Submits them in the pool, where texts are made tokens. edition: of their tenant.

    Raises: as `Engine.submit`, and then none of them runs.
    """
    loop = asyncio.get_running_loop()
    pieces: asyncio.Queue[Came] = asyncio.Queue()

    def deliver(i: int, piece: Piece) -> None:
        try:
            loop.call_soon_threadsafe(pieces.put_nowait, (i, piece, time.monotonic()))
        except RuntimeError:  # the loop is closed: nobody waits any more
            pass

    def submit() -> list[Stream]:
        streams: list[Stream] = []
        try:
            for i, request in enumerate(requests):
                streams.append(engine.submit(request, partial(deliver, i), edition))
        except BaseException:
            _cancel(streams)
            raise
        return streams

    work = loop.run_in_executor(pool, submit)
    try:
        streams = await asyncio.shield(work)
    except asyncio.CancelledError:
        work.add_done_callback(lambda done: _cancel([] if done.cancelled() or done.exception() else done.result()))
        raise
    return Asked(streams, pieces)


def _cancel(streams: Sequence[Stream]) -> None:
    for stream in streams:
        stream.cancel()


class Gone(Exception):
    """The client has hung up."""


async def while_there(call: Call, work: Awaitable[Any]) -> Any:
    """Its result. Raises: Gone when the client hangs up before; the work is cancelled then."""
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_gone(call))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise Gone
    finally:
        for t in (task, gone):
            t.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _gone(call: Call) -> None:
    while (await call.receive())["type"] != "http.disconnect":
        pass
