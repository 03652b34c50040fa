"""One answer that is being made: whose it is, what it has so far, and to whom its pieces go."""

from __future__ import annotations

import itertools
import logging
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from torch import Tensor

from ..core import CommonweightError
from ..host import Tenant
from .edition import Edition
from .grammar import Grammar
from .request import Answer, Logprob, Piece, Request
from .sampling import Chosen, Row
from .text import Decoder

_numbers = itertools.count(1)
_LOG = logging.getLogger(__name__)


def last_of(text: Sequence[int], tokens: tuple[int, ...]) -> int:
    """Where the last occurrence of the tokens begins in a text; beyond every text where there is none."""
    ends = range(len(text) - len(tokens), -1, -1)
    return next((i for i in ends if tuple(text[i : i + len(tokens)]) == tokens), sys.maxsize)


@dataclass(eq=False)
class Ticket:
    """What the engine knows of one answer; the generation thread alone writes to it, but for `cancelled`.

    edition: its tenant as it was when the request came, or None for the plain base.
    prompt: token ids. ends: the tokens that end it. deliver: called with each piece, from the generation thread; it
    must not wait. One that raises gets no more, and its answer is over. most: new tokens.
    """

    request: Request
    edition: Edition | None
    prompt: list[int]
    ends: frozenset[int]
    decoder: Decoder
    deliver: Callable[[Piece], None]
    seed: int
    most: int
    index: int = 0
    grammar: Grammar | None = None
    id: str = field(default_factory=lambda: f"cw{next(_numbers)}")
    started: float = field(default_factory=time.monotonic)
    begun: float | None = None  # when the first step with it began
    first: float | None = None  # when its first token came
    preempted: int = 0  # how often it gave its place up and began again
    cached: int = 0  # tokens of the prompt that the cache of prefixes had
    chosen: Chosen | None = None  # by the step that runs
    context: Tensor | None = None  # the embedding of its prompt, (1, d), where its tenant goes by it
    reason: str | None = None
    error: str | None = None
    cancelled: threading.Event = field(default_factory=threading.Event)

    @cached_property
    def begins(self) -> int:
        """The token of its text from which on its tenant acts."""
        tokens = () if self.edition is None else self.edition.invocation
        return last_of(self.prompt, tokens) if tokens else 0

    def readers_of(self, first: int, n: int) -> list[tuple[Edition | None, int]]:
        """Who reads the n tokens of its text from the `first` on, one after the other, each with how many."""
        before = min(max(0, self.begins - first), n)
        return [part for part in ((None, before), (self.edition, n - before)) if part[1]]

    @property
    def prompted(self) -> bool:
        return self.edition is not None and self.edition.prompted

    @property
    def readers(self) -> tuple[Tenant, ...]:
        return () if self.edition is None else self.edition.tenants

    @property
    def tokens(self) -> list[int]:
        return self.decoder.tokens

    @property
    def row(self) -> Row:
        allowed = None if self.grammar is None else self.grammar.allowed()
        early = len(self.tokens) < self.request.min_tokens
        return Row(self.request, self.seed, self.prompt, self.tokens, allowed, self.ends if early else frozenset())

    @property
    def late(self) -> bool:
        limit = self.request.timeout
        return limit is not None and time.monotonic() - self.started > limit

    def take(self, chosen: Chosen) -> bool:
        """One more token; whether the answer has ended with it."""
        if chosen.bad:
            who = "the model" if self.edition is None else f"tenant {self.edition.name!r}"
            return self.end("error", f"{who} gave scores that are no finite numbers")
        if self.first is None:
            self.first = time.monotonic()
        ended = chosen.token in self.ends
        if self.grammar is not None:
            try:
                self.grammar.take(chosen.token)
            except CommonweightError as e:
                return self.end("error", str(e))
            ended |= self.grammar.over
        text = self.decoder.feed(chosen.token)
        ended |= self.decoder.stopped is not None
        full = len(self.tokens) >= self.most
        logs = () if chosen.logprob is None else (chosen.logprob,)
        if not ended and not full:
            return not self._give(Piece((chosen.token,), text, self.index, logs))
        text += self.decoder.rest()  # which may hold a stop string, too
        self.reason = "stop" if ended or self.decoder.stopped is not None else "length"
        self._give(Piece((chosen.token,), text, self.index, logs, self.reason, stopped_by=self._cause))
        return True

    @property
    def _cause(self) -> str | int | None:
        """What of the request's own ended it."""
        if self.decoder.stopped is not None or self.reason != "stop":
            return self.decoder.stopped
        last, request = self.tokens[-1], self.request
        return last if last in request.stop_token_ids and last in self.ends else None

    def end(self, reason: str, error: str | None = None) -> bool:
        """Ends it without a token, once."""
        if self.reason is None:
            self.reason, self.error = reason, error
            self._give(Piece((), self.decoder.rest(), self.index, (), reason, error))
        return True

    def _give(self, piece: Piece) -> bool:
        """Whether it was taken."""
        try:
            self.deliver(piece)
        except Exception as e:  # a program's own, in the thread that answers everybody
            _LOG.exception("what takes the pieces of %s failed, which ends it", self.id)
            self.deliver, self.reason, self.error = _nobody, "error", f"{type(e).__name__}: {e}"
            return False
        return True


def _nobody(piece: Piece) -> None: ...


def joined(ticket: Ticket, pieces: Sequence[Piece]) -> Answer:
    """The answer that its pieces make."""
    logs: list[Logprob] = [x for p in pieces for x in p.logprobs]
    last = pieces[-1]
    return Answer(
        [t for p in pieces for t in p.tokens], "".join(p.text for p in pieces), last.finish_reason or "error",
        last.error, None if ticket.request.logprobs is None else logs, len(ticket.prompt), ticket.cached, ticket.index,
        stopped_by=last.stopped_by,
    )  # fmt: skip
