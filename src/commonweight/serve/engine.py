"""The engine: requests of many tenants in one batch of one model, without a server."""

from __future__ import annotations

import queue
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..commons import Commons
from ..core import CommonweightError, counted
from ..host import Host, prepacked
from ..host.embedded import of_prompts
from . import check, memory, prompts, teams
from .attention import stepping
from .borrowed import borrow, drops, give_back, steady
from .edition import Edition
from .grammar import Grammars
from .request import Answer, Piece, Request
from .routing import Router
from .tenants import Tenants
from .text import Decoder
from .ticket import Ticket, joined

_NEW = 256  # new tokens where a request does not say


class Stream:
    """The pieces of a request's answers as they come, from any thread; `answer()` waits for the end.

    Iterating raises nothing: the last piece of an answer says why it ended, and its `error`.
    """

    def __init__(self, engine: Engine, tickets: Sequence[Ticket], pieces: queue.SimpleQueue[Piece]):
        self.tickets = tickets
        self._engine, self._pieces = engine, pieces
        self._got: list[list[Piece]] = [[] for _ in tickets]
        self._open = len(tickets)

    def __iter__(self) -> Iterator[Piece]:
        while self._open:
            piece = self._pieces.get()
            self._got[piece.index].append(piece)
            self._open -= piece.finish_reason is not None
            yield piece

    def answer(self) -> Answer:
        """The whole answer, and with n > 1 all of them in its `choices`."""
        for _ in self:
            pass
        found = tuple(joined(t, got) for t, got in zip(self.tickets, self._got))
        first = found[0]
        return replace(first, choices=found)

    def cancel(self) -> None:
        """Ends it at the next step, with what it has; its place is free from then on."""
        self._engine.cancel(self)


class Engine:
    """Many tenants of one language model, answered in one batch (transformers' continuous batching).

    model: a `Host`, a model, or a folder or name that transformers loads. store: a `Commons` or its folder; a tenant
    that is not on the host is looked for there. tokenizer: for text and messages; None: the one beside the model.

    max_requests: so many answers at once, and a quarter more for tenants that have none in work; the rest wait.
    max_batch_tokens: tokens of one step, prompts included; a longer prompt takes several. cache_tokens: what the paged
    cache holds, all requests together; None: enough for max_requests of 512 tokens, at least one of the model's own
    length up to 8,192. page_size: tokens of a block, 4 or more, which are what requests of one tenant share of a common
    prefix. max_waiting: requests that may wait; more are refused.
    tenant_memory: bytes of tenants that are kept loaded from the store, the longest unused ones go first; None: all.
    prepack: on a CPU, a second copy of the linear layers' weights as oneDNN reads them, which takes less time; None:
    where the copy takes at most a quarter of the memory that is free.

    Isolation: a request reads its own keys alone; prefixes are found within a tenant's version alone; a tenant whose
    numbers are not finite ends its own answers; a step that fails is done again request by request, and the one that
    fails alone gets the error. At start a few prompts go through engine and plain model: a model where they differ is
    refused, as is a transformers whose private names have moved.
    A tenant that reads whole rows (`lst`, `vqt`, `rpo`) is right too, and slow: it reads its text anew for each token.
    Cost: the cache, 2 * layers * kv heads * head size numbers a token. The model answers other calls meanwhile. On a
    CPU with glibc the process keeps memory that it has freed, up to half a gigabyte, from the first engine on; a
    `MALLOC_` or `GLIBC_TUNABLES` variable in the environment leaves that to you.
    Raises: CommonweightError for a model that cannot be served, with the reason.
    """

    def __init__(
        self,
        model: Host | nn.Module | str | Path,
        *,
        store: Commons | str | Path | None = None,
        tokenizer: Any = None,
        max_requests: int = 64,
        max_batch_tokens: int = 512,
        cache_tokens: int | None = None,
        page_size: int = 32,
        max_waiting: int = 1024,
        tenant_memory: int | None = None,
        prefix_cache: bool = True,
        prepack: bool | None = None,
    ):
        check.installed()
        check.sizes(
            max_requests=max_requests, max_batch_tokens=max_batch_tokens, cache_tokens=cache_tokens,
            max_waiting=max_waiting,
        )  # fmt: skip
        check.sizes(4, page_size=page_size)
        check.sizes(0, tenant_memory=tenant_memory)
        from .batching import Manager, configured

        self.host, mine, name = prompts.hosted(model)
        self._owns = mine
        self.model: Any = self.host.model
        check.servable(self.model)
        self.tokenizer = tokenizer if tokenizer is not None else prompts.tokenizer_of(self.model, name)
        self.tenants = Tenants(self.host, store, tenant_memory)
        self.tenants.widen()
        self.max_waiting = max_waiting
        self.length = prompts.length_of(self.model)
        if cache_tokens is None:
            cache_tokens = max(512 * max_requests, min(self.length or 8192, 8192))
        blocks = -(-cache_tokens // page_size) + 1
        self.page_size, self.prefix_cache, self.max_batch_tokens = page_size, prefix_cache, max_batch_tokens
        self.cache_tokens = page_size * (blocks - 1)
        self._grammars = Grammars(self.tokenizer, self.vocabulary, self.ends)
        self._router = Router(self.host, 4 * max_requests)
        most = min(max_requests + max(1, max_requests // 4), max(max_batch_tokens, max_requests))
        device: Any = self.model.device
        config = configured(device, page_size, blocks, max_batch_tokens, most, prefix_cache)
        borrow(self.host, "an engine")
        self._drops = drops(self.model)
        try:
            self._manager = Manager(self.model, self._step, self._router.whole, config)
        except BaseException:
            give_back(self.host)
            raise
        self._manager.between = self._between
        self._manager.places = max_requests
        self._manager.order = lambda ticket: self._router.lanes.order(ticket.edition)
        self._lock, self._closed = threading.Lock(), False
        self._packed = prepacked.prepack(self.model, prepack, stepping)
        if self.model.device.type == "cpu":
            memory.keep()
        self.stepped: Callable[[int], None] = lambda tokens: None  # told how many tokens each step has, in its thread
        self._manager.start()
        try:
            check.same(self)
        except BaseException:
            self.close()
            raise
        teams.rest()

    # -- asking ----------------------------------------------------------------------------------------------------

    def submit(
        self, request: Request, deliver: Callable[[Piece], None] | None = None, edition: Edition | None = None
    ) -> Stream:
        """Puts a request into the queue and returns at once; a tenant that is not loaded is loaded first.

        deliver: takes the pieces in place of the stream, from the engine's thread; it must not wait. Where it raises,
        that answer is over. edition: of the request's tenant, where that has been looked up already
        (`tenants.edition`).
        Raises: CommonweightError for what is wrong with the request, an unknown tenant, or a full queue.
        """
        if not isinstance(request, Request):
            raise CommonweightError(f"a {type(request).__name__} came; wanted a Request")
        request.check()
        if request.n > self.max_waiting:
            raise CommonweightError(
                f"n is {request.n}; at most {counted(self.max_waiting, 'answer')} may wait here, so that there would "
                "never be room; ask for fewer"
            )
        tokens = prompts.tokens(request, self.tokenizer, self.vocabulary)
        grammar = None if request.structured is None else self._grammars.of(request.structured)
        edition = edition or self.tenants.edition(request.tenant, request.task)
        teams.rest()
        most = self._most(request, len(tokens), 0 if edition is None else edition.ahead)
        pieces: queue.SimpleQueue[Piece] = queue.SimpleQueue()
        seed = secrets.randbits(63) if request.seed is None else request.seed
        ends = frozenset(request.stop_token_ids) | (frozenset() if request.ignore_eos else self.ends)
        tickets = [
            Ticket(
                request, edition, tokens, ends,
                Decoder(self.tokenizer, request.stops, request.special, request.min_tokens),
                deliver or pieces.put, seed + i, most, i, None if grammar is None else grammar.copy(),
            )
            for i in range(request.n)
        ]  # fmt: skip
        with self._lock:
            if self.closed:
                raise CommonweightError("the engine is closed; make a new one")
            if self._manager.waiting + request.n > self.max_waiting:
                raise Full(f"{self._manager.waiting} requests wait already, at most {self.max_waiting} may; try later")
            for ticket in tickets:
                self.tenants.hold(ticket)
                if edition is None or edition.sound:
                    self._manager.submit(ticket)
                else:
                    ticket.end("error", f"tenant {edition.name!r} has parameters that are no finite numbers")
        if not self._manager.is_running():  # its thread may have told all that it knew just before
            for ticket in tickets:
                ticket.end("error", "the engine has stopped before this answer was finished")
        return Stream(self, tickets, pieces)

    def generate(self, requests: Sequence[Request]) -> list[Answer]:
        """Answers in the order of the requests. What is wrong with one of them is its answer's error; the others are
        answered. They run together, as many at once as there is room for."""
        streams: list[Stream | Answer] = []
        for request in requests:
            try:
                streams.append(self._patiently(request))
            except CommonweightError as e:
                streams.append(Answer([], "", "error", str(e)))
        return [s if isinstance(s, Answer) else s.answer() for s in streams]

    def _patiently(self, request: Request) -> Stream:
        while True:
            try:
                return self.submit(request)
            except Full:
                threading.Event().wait(0.02)

    def stream(self, request: Request) -> Iterator[Piece]:
        """Its pieces as they come. Leaving the loop early cancels the request. Raises as `submit`, and
        CommonweightError where the answer ends with an error."""
        stream = self.submit(request)
        try:
            for piece in stream:
                if piece.error is not None:
                    raise CommonweightError(piece.error)
                yield piece
        finally:
            stream.cancel()

    def cancel(self, stream: Stream) -> None:
        """Ends its answers at the next step; those that have ended stay as they are."""
        for ticket in stream.tickets:
            ticket.cancelled.set()
        self._manager._wake_up_loop.set()

    def unload(self, name: str) -> bool:
        """Takes a tenant out of memory, also what the batch holds of it; answers that have begun are finished as it.
        Whether it was there. A tenant of the store is loaded again when it is asked for."""
        there = self.tenants.drop(name)
        self._manager._wake_up_loop.set()
        return there

    # -- what it is ------------------------------------------------------------------------------------------------

    @property
    def running(self) -> int:
        """Answers that are being made."""
        return self._manager.running

    @property
    def waiting(self) -> int:
        """Answers that have not begun."""
        return self._manager.waiting

    @property
    def open(self) -> list[Ticket]:
        """Answers that have not ended, those that wait too."""
        return [t for t in list(self._manager.open) if t.reason is None]

    @property
    def closed(self) -> bool:
        """Whether it answers no more: it was closed, or its thread has ended."""
        return self._closed or not self._manager.is_running()

    @property
    def vocabulary(self) -> int:
        return self.model.get_input_embeddings().num_embeddings

    @property
    def ends(self) -> frozenset[int]:
        """The tokens that end an answer, by the model's generation config."""
        found = getattr(self.model.generation_config, "eos_token_id", None)
        found = getattr(self.model.config.get_text_config(), "eos_token_id", None) if found is None else found
        return frozenset([] if found is None else [found] if isinstance(found, int) else found)

    def close(self) -> None:
        """Stops it; requests that have not ended get an error. The model is as it was before. Safe to call twice."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._manager.closing = True
        self._manager.stop(block=True, hard_stop=True)
        self._router.lanes.close()
        prepacked.unpack(self._packed)
        give_back(self.host)
        if self._owns:
            self.host.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def _most(self, request: Request, prompt: int, ahead: int) -> int:
        """How many new tokens there may be. ahead: positions that the tenant takes in front. Raises: CommonweightError
        where prompt and answer have no room."""
        if not prompt:
            raise CommonweightError("the prompt is empty; wanted at least one token")
        asked = request.max_new_tokens
        more = " without scaling the positions of all" if prompts.scaled(self.model) else ""
        more += f" with the {ahead} that the tenant puts in front" if ahead else ""
        length = None if self.length is None else self.length - ahead
        for limit, what, why in (
            (length, "the model reads", more),
            (self.cache_tokens, "the engine's cache holds", ""),
        ):
            if limit is not None and prompt + (asked or 1) > limit:
                new = "a new one is needed" if asked is None else f"{asked} new ones are asked for"
                raise CommonweightError(
                    f"the prompt has {counted(prompt, 'token')} and {new}, but {what} {limit}{why}; shorten the "
                    "prompt or max_new_tokens"
                )
        room = min(x for x in (length, self.cache_tokens, prompt + _NEW) if x is not None) - prompt
        return room if asked is None else asked

    # -- in the engine's thread --------------------------------------------------------------------------------------

    def _between(self) -> None:
        """Tenants that have left give back what the batch holds of them, when nobody reads them any more."""
        self.tenants.trim()
        if self.tenants.left.is_set():
            self.tenants.left.clear()
            self._router.forget(self.tenants.gone)
            if any(self.tenants.leaving(e) for e in self._router.lanes.known()):
                self.tenants.left.set()  # somebody still reads it: looked at again after the next step

    def _step(self, batch: list[tuple[Ticket, int]], processor: Any) -> None:
        steady(self.model, self._drops)
        now = time.monotonic()
        for ticket, _ in batch:
            if ticket.begun is None:
                ticket.begun = now
        self.stepped(sum(n for _, n in batch))
        readers = _readers(batch, processor)
        self._router.run(readers, processor, self._manager.run, self._contexts(batch))

    def _contexts(self, batch: list[tuple[Ticket, int]]) -> Tensor | None:
        """Of each token of a step the embedding of its request's prompt, (T, d); zeros where its tenant does not go by
        it, None where none does. A request's is made once, when it is admitted, however its prompt is read."""
        mine = [t for t, _ in batch if t.prompted]
        if not mine:
            return None
        for ticket in mine:
            if ticket.context is None:
                ticket.context = of_prompts(self.model, self.host.base.current, [ticket.prompt])
        none = torch.zeros_like(mine[0].context)  # type: ignore[arg-type]
        return torch.cat([(none if t.context is None else t.context).expand(n, -1) for t, n in batch])


def _readers(batch: list[tuple[Ticket, int]], processor: Any) -> list[tuple[Edition | None, int]]:
    """Who reads each token of a step, by how many one after the other. The tokens before an invocation are the plain
    base's."""
    if all(t.begins == 0 for t, _ in batch):
        return [(t.edition, n) for t, n in batch]
    at, out = 0, []
    firsts = processor.inputs_and_outputs.position_ids.tolist()
    for ticket, n in batch:
        out += ticket.readers_of(firsts[at], n)
        at += n
    return out


class Full(CommonweightError):
    """More requests wait than may."""
