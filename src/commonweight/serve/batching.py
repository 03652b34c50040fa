"""transformers' continuous batching, in which each request is its tenant's: what is changed of it, and nothing else.

Scheduling, the paged cache and the loop are transformers' own. Ours are: whose token each one is (a route per step),
attention per request, a cache of prefixes that is salted by tenant, the choice of tokens, and what happens on errors.
Names that begin with an underscore are looked for at start (`missing`): they are private there and may move.
"""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import ContinuousBatchingConfig, GenerationConfig
from transformers.generation.continuous_batching.cb_logits_processors import ContinuousBatchingLogitsProcessorList
from transformers.generation.continuous_batching.continuous_api import ContinuousBatchingManager, OutputRouter
from transformers.generation.continuous_batching.requests import RequestState, RequestStatus
from transformers.generation.continuous_batching.scheduler import SCHEDULER_MAPPING, FIFOScheduler
from transformers.generation.logits_process import LogitsProcessorList

from . import attention, teams
from .sampling import choose
from .scheduler import Scheduler, State, stamp
from .ticket import Ticket

_SCHEDULER = "commonweight"


class Choice(ContinuousBatchingLogitsProcessorList):
    """In the place of the processors: chooses a token a row, which the row's ticket takes along.

    whole: the scores that follow some tokens, by an edition that reads whole rows; in the batch it runs as the base."""

    def __init__(self, whole: Callable[[Any, list[int]], Tensor]) -> None:
        super().__init__(LogitsProcessorList())
        self.do_processing = True
        self._whole, self._states = whole, list[State]()

    def check_kwargs(self, kwargs: dict) -> None:
        """Requests are checked before they are submitted."""

    def fill_defaults(self, int32_tensor: Tensor) -> None:
        """It keeps nothing in the tensor of arguments."""

    def prepare_tensor_args(self, requests_in_batch: list, arg_storage: Tensor) -> Tensor:
        self._states = [r.state for r in requests_in_batch if r.has_new_token]
        return arg_storage

    def __call__(self, input_ids: Tensor, scores: Tensor, logits_processor_args: Tensor) -> Tensor:
        tickets, rows = [s.ticket for s in self._states], scores[: len(self._states)]
        for i, (state, ticket) in enumerate(zip(self._states, tickets)):
            if ticket.edition is not None and ticket.edition.whole:
                rows[i] = self._whole(ticket.edition, state.initial_tokens + state.generated_tokens)
        for ticket, chosen in zip(tickets, choose(rows, [t.row for t in tickets])):
            ticket.chosen = chosen
        return scores  # each token travels by its ticket; the argmax that follows is not looked at


class Salted(list):
    """Token ids whose first block's hash begins with a tenant's number: no block of one is found by another.

    begins: where the tenant begins to act. Blocks before it are the plain base's, and its own begin with the block that
    holds it. own: a request's own salt, which its first block has too, and the whole prompt of a tenant that goes by
    its embedding.
    """

    def __init__(self, tokens: list[int], stamp: int, begins: int = 0, own: Sequence[int] = ()):
        super().__init__(tokens)
        self.salt, self.begins, self.own = [stamp >> 30, stamp & (1 << 30) - 1], begins, own

    def __getitem__(self, at: Any) -> Any:
        found = super().__getitem__(at)
        if not isinstance(at, slice):
            return found
        first = at.start or 0
        acts = first <= self.begins < first + max(1, len(found))
        salt = self.salt if acts else [] if first else [0, 0]
        return [*salt, *([] if first else self.own), *found]


def salt_cache(cache: Any, state_of: Callable[[str], State | None]) -> None:
    """Makes a paged cache look for prefixes, and keep them, by tenant, and by the salt that a request names itself.
    state_of: the request of an id.

    No two editions have one stamp, so that a new version of a tenant begins with an empty cache.
    """
    search, allocators = cache.search_prefix_match, cache.cache_allocators

    def found(request_id: str, prompt_ids: list[int]) -> int:
        state = state_of(request_id)
        if state is None:
            return 0
        n = search(request_id, _salted(state, prompt_ids))
        state.ticket.cached = max(state.ticket.cached, n)
        return n

    def kept(state: State, complete_blocks: dict[str, int]) -> None:
        if not cache.allow_block_sharing or not complete_blocks or state.status == RequestStatus.FINISHED:
            return
        tokens = _salted(state, state.initial_tokens + state.generated_tokens)
        for name, n in complete_blocks.items():
            allocators[name].mark_complete_blocks(state.request_id, tokens, n)

    cache.search_prefix_match, cache.mark_complete_blocks = found, kept


def _salted(state: State, tokens: list[int]) -> Salted:
    """Numbers of 31 bits stand for a request's own salt, since the hash is of such."""
    said = state.ticket.request.cache_salt
    told = b"" if said is None else hashlib.sha256(said.encode("utf-8", "surrogatepass")).digest()
    if state.ticket.prompted:  # its keys go by all of its prompt
        told += hashlib.sha256(repr(state.ticket.prompt).encode()).digest()
    own = [int.from_bytes(told[i : i + 4], "little") >> 1 for i in range(0, len(told), 4)]
    return Salted(tokens, stamp(state), state.ticket.begins, own)


SCHEDULER_MAPPING[_SCHEDULER] = Scheduler


class Nobody(OutputRouter):
    """Takes what transformers would queue of each answer: tickets have delivered it already."""

    def deliver(self, output: Any) -> None: ...

    def deliver_batch(self, outputs: list) -> None: ...


class Manager(ContinuousBatchingManager):
    """The loop. step: runs a model's pass within the route of the requests of a step: step(tickets with their numbers
    of tokens, run). whole: see `Choice`. Its thread is the only one that touches cache and scheduler."""

    def __init__(
        self,
        model: nn.Module,
        step: Callable[..., None],
        whole: Callable[..., Tensor],
        config: ContinuousBatchingConfig,
    ):
        self._step = step
        self.open: weakref.WeakSet[Ticket] = weakref.WeakSet()  # answers that have not ended
        self.between: Callable[[], None] = lambda: None  # called in the loop's thread, between two steps
        self.places: int | None = None  # see `Scheduler`
        self.closing = False  # whether it is told to end
        self.large: Exception | None = None  # why its cache has no room in the memory that is free
        self.order: Callable[[Ticket], Any] = lambda ticket: (0, 0)  # of requests with one token in a step
        generation = GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0)
        super().__init__(model, generation, config)  # type: ignore[arg-type]
        self.logit_processor, self.output_router = Choice(whole), Nobody()

    def switch_to_cb_friendly_attn(self, model: Any, auto_switch_to_flash: bool = True) -> None:
        """It is set back by `borrowed.give_back`, not here: other engines may run the model then."""
        attention.register()
        model.set_attn_implementation(attention.NAME)

    def _create_batch_processor(self) -> Any:
        try:
            made = super()._create_batch_processor()
        except (MemoryError, RuntimeError) as e:  # also torch's, of a device or an allocator
            self.large = e if isinstance(e, MemoryError) or "memory" in str(e) else None
            raise
        scheduler: Any = made.scheduler
        scheduler.order, scheduler.places = self.order, self.places

        def state_of(request: str) -> Any:
            return scheduler.active_requests.get(request) or scheduler.waiting_requests.get(request)

        salt_cache(made.cache, state_of)
        return made

    # -- from any thread -------------------------------------------------------------------------------------------

    def submit(self, ticket: Ticket) -> None:
        self.open.add(ticket)
        self.input_queue.put(State(ticket.id, list(ticket.prompt), max_new_tokens=None, ticket=ticket))
        self._wake_up_loop.set()

    # -- in the thread of the loop ---------------------------------------------------------------------------------

    @property
    def waiting(self) -> int:
        made = self.batch_processor
        return self.input_queue.qsize() + (0 if made is None else len(made.scheduler.waiting_requests))

    @property
    def running(self) -> int:
        return 0 if self.batch_processor is None else len(self.batch_processor.scheduler.active_requests)

    def _generation_loop_body(self, batch_processor: Any, bootstrapping: bool) -> bool:
        self._sweep(batch_processor)
        try:
            self.between()
            if not (self.running or self.waiting):
                teams.rest()
            return super()._generation_loop_body(batch_processor, bootstrapping)
        except Exception as error:
            self._went_wrong(batch_processor, error)
            return True

    def _sweep(self, made: Any) -> None:
        """Cancelled and late requests give back what they hold, and are answered."""
        scheduler = made.scheduler
        for state in [*scheduler.active_requests.values(), *scheduler.waiting_requests.values()]:
            reason = "cancelled" if state.ticket.cancelled.is_set() else "timeout" if state.ticket.late else None
            if reason is not None:
                scheduler.set_request_cancellation(state.request_id)
                state.ticket.end(reason)

    def _generation_step(self) -> None:
        made: Any = self.batch_processor
        batch = [(f.state.ticket, f.query_length) for f in made.inputs_and_outputs.requests_in_batch]
        attention.STEP.plans = {}
        try:
            self._step(batch, made)
        finally:
            attention.STEP.plans = None

    def run(self) -> None:
        """The model's pass of this step, for `step`."""
        super()._generation_step()

    def _went_wrong(self, made: Any, error: Exception) -> None:
        """A step failed. Alone in it, a request is to blame. Of several, each starts again, alone, with what it has
        answered: those that are well go on, and the one at fault fails by itself."""
        scheduler = made.scheduler
        states = [f.state for f in made.inputs_and_outputs.requests_in_batch]
        states = [s for s in states if s.request_id in scheduler.active_requests]
        if not states:  # before there was a batch: nobody can be told from the others
            states = list(scheduler.active_requests.values()) or list(scheduler.waiting_requests.values())[:1]
        for state in states:
            scheduler.finish_request(state.request_id)
            scheduler.waiting_requests.pop(state.request_id, None)
            if state.request_id in scheduler.waiting_requests_order:
                scheduler.waiting_requests_order.remove(state.request_id)
            state.ticket.chosen = None
            if len(states) == 1:
                state.ticket.end("error", f"{type(error).__name__}: {error}")
                continue
            again = state.create_equivalent_initial_request()
            state.ticket.preempted -= 1  # not for want of room
            again.suspect = True
            scheduler.add_waiting_request(again)
        made.inputs_and_outputs.requests_in_batch = []

    def _fail_all_remaining_requests(self, error: Exception, batch_processor: Any) -> None:
        """The loop ends: everybody who waits is told, wherever their request was."""
        if batch_processor is not None:
            scheduler = batch_processor.scheduler
            for request in [*scheduler.active_requests, *scheduler.waiting_requests]:
                scheduler.set_request_cancellation(request)
            scheduler.clear_cancelled_requests()
        while not self.input_queue.empty():
            self.input_queue.get_nowait()
        why = "it was closed" if self.closing else str(error)
        for ticket in [t for t in self.open if t.reason is None]:
            ticket.end("error", f"the engine has stopped before this answer was finished: {why}")
        self.open.clear()


_PRIVATE = {
    ContinuousBatchingManager: ("_generation_loop_body", "_generation_step", "_create_batch_processor",
        "_fail_all_remaining_requests", "switch_to_cb_friendly_attn"),
    FIFOScheduler: ("schedule_batch", "finish_request", "add_waiting_request", "set_request_cancellation",
        "clear_cancelled_requests", "_get_waiting_candidates", "_process_candidates"),
    RequestState: ("update_and_check_completion", "create_equivalent_initial_request"),
}  # fmt: skip


def missing() -> list[str]:
    """Names of transformers that this file rests on and that are not there."""
    return [f"{c.__name__}.{n}" for c, names in _PRIVATE.items() for n in names if not hasattr(c, n)]


def configured(device: torch.device, page: int, blocks: int, batch_tokens: int, requests: int, share: bool) -> Any:
    """The settings of one manager; the cache holds page * blocks tokens. requests: at once, at most."""
    return ContinuousBatchingConfig(
        page_size=page, num_blocks=blocks, max_batch_tokens=batch_tokens, max_requests_per_batch=requests,
        allow_block_sharing=share, use_async_batching=False, use_cuda_graph=False, max_blocks_per_request=0,
        scheduler_type=_SCHEDULER, auto_switch_to_flash=False,
    )  # fmt: skip
