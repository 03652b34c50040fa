"""Whose requests a step takes: first come, first served, in turn between tenants, by transformers' scheduler."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from transformers.generation.continuous_batching.requests import RequestState, RequestStatus
from transformers.generation.continuous_batching.scheduler import FIFOScheduler

from .ticket import Ticket

_LATELY = 1.0  # seconds: a tenant that has asked since then is about
_LEAST = 32  # tokens of a step that a burst's prompts have, whoever is about


@dataclass
class State(RequestState):
    """A request as transformers' scheduler has it, with its ticket. suspect: a step with it and others went wrong; it
    runs alone until a step of its own has gone well."""

    ticket: Any = None
    suspect: bool = False

    def update_and_check_completion(self, token_id: int, logprob: float | None) -> bool:
        ticket: Ticket = self.ticket
        assert ticket.chosen is not None
        chosen, ticket.chosen = ticket.chosen, None
        self.suspect = False
        ended = ticket.take(chosen)
        if not chosen.bad:
            self.generated_tokens.append(chosen.token)
            self.tokens_to_process = [chosen.token]
        if ended:
            self.status = RequestStatus.FINISHED
        return ended

    def create_equivalent_initial_request(self) -> RequestState:
        """The same from the start, with what it has answered as part of its prompt. The scheduler does so with whom it
        takes out of the batch."""
        self.ticket.preempted += 1
        return State(
            request_id=self.request_id, initial_tokens=self.initial_tokens + self.generated_tokens,
            max_new_tokens=None, ticket=self.ticket, suspect=self.suspect,
        )  # fmt: skip


def stamp(state: State) -> int:
    """Of the tenant's edition, 0 for the plain base."""
    edition = state.ticket.edition
    return 0 if edition is None else edition.stamp


class Scheduler(FIFOScheduler):
    """First come, first served, in turn between tenants: of those that wait, a tenant's next one comes after everybody
    who has fewer in work. places: above so many at once only tenants come in that have none in work. While several
    tenants are about, prompts of a tenant with others in work come last and take at most a quarter of a step, so that
    no step is long for whoever waits for the next one. Requests under suspicion run one at a time. order: how those
    that go on stand in a step."""

    places: int | None = None
    order: Callable[[Ticket], Any] = staticmethod(lambda ticket: (0, 0))

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.asked: dict[int, float] = {}  # tenants: when they asked last

    def add_waiting_request(self, state: RequestState) -> None:
        now = time.monotonic()
        self.asked = {tenant: at for tenant, at in self.asked.items() if now - at < _LATELY}
        self.asked[stamp(state)] = now  # type: ignore[arg-type]
        super().add_waiting_request(state)

    def _process_candidates(self, candidates: list[RequestState], tokens: int, *args: Any) -> Any:  # type: ignore[override]
        found, *rest = super()._process_candidates(*self._shared(candidates, tokens), *args)
        found.sort(key=lambda f: (0, self.order(f.state.ticket)) if f.query_length == 1 else (1, (0, 0)))  # type: ignore[attr-defined]
        return found, *rest

    def _shared(self, candidates: list[RequestState], tokens: int) -> tuple[list[RequestState], int]:
        """(whom a step asks, the tokens that it may have) so that a burst's prompts have a quarter of them."""
        works = Counter(stamp(s) for s in self.active_requests.values())  # type: ignore[arg-type]
        lately = {t for t, at in self.asked.items() if time.monotonic() - at < _LATELY}
        if len(lately | works.keys()) < 2:
            return candidates, tokens
        first, burst = [], []
        for state in candidates:
            runs = state.request_id in self.active_requests
            others = works[stamp(state)] - runs  # type: ignore[arg-type]
            works[stamp(state)] += not runs  # type: ignore[arg-type]
            (burst if others and state.status != RequestStatus.DECODING else first).append(state)
        if not burst:
            return candidates, tokens
        need = sum(1 if s.status == RequestStatus.DECODING else len(s.remaining_prefill_tokens) for s in first)
        return first + burst, min(tokens, need + max(_LEAST, tokens // 4))

    def _get_waiting_candidates(self) -> list[RequestState]:
        found = super()._get_waiting_candidates()
        turns = Counter(stamp(s) for s in self.active_requests.values())  # type: ignore[arg-type]
        order = []
        for state in found:
            order.append(turns[stamp(state)])  # type: ignore[arg-type]
            turns[stamp(state)] += 1  # type: ignore[arg-type]
        room = len(found) if self.places is None else self.places - len(self.active_requests)
        out = []
        for nth, state in sorted(zip(order, found), key=lambda pair: pair[0]):
            if room > 0 or nth == 0:
                out.append(state)
                room -= 1
        return out

    def schedule_batch(self, token_budget: int, cache_budget: int) -> Any:
        suspects = [s for s in (*self.active_requests.values(), *self.waiting_requests.values()) if s.suspect]  # type: ignore[attr-defined]
        if not suspects:
            return super().schedule_batch(token_budget, cache_budget)
        active, waiting, order = self.active_requests, self.waiting_requests, self.waiting_requests_order
        one = suspects[0]
        others_a = {k: v for k, v in active.items() if v is not one}
        others_w = {k: v for k, v in waiting.items() if v is not one}
        others_o = [k for k in order if k != one.request_id]
        for k in others_a:
            del active[k]
        for k in others_w:
            del waiting[k]
        order.clear()
        if one.request_id in waiting:
            order.append(one.request_id)
        try:
            return super().schedule_batch(token_budget, cache_budget)
        finally:
            self.active_requests = {**others_a, **self.active_requests}
            self.waiting_requests = {**self.waiting_requests, **others_w}
            self.waiting_requests_order.extend(others_o)
