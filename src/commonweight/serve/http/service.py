"""What all routes of a server stand on: who may ask which tenant, calls as they run, and how they end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from starlette.requests import Request as Call

from ...core import CommonweightError, Unknown, WrongTask
from ..blend import several, terms
from ..engine import Engine, Full
from ..request import Answer, Piece, Request
from ..teams import alone
from ..ticket import Ticket
from .asking import Asked, ask
from .errors import Refused, of_request
from .keys import Guard, Key
from .limits import Limits
from .logs import say
from .metrics import Metrics
from .roster import COMING, Roster
from .served import Served
from .settings import BASE, Settings
from .tokens import Tokens

LONGEST = 1024  # characters of a tenant's name, or of a sum's
WORKERS = 8  # threads that make texts tokens, and as many that load tenants


class Service:
    """An engine with its server's settings. number: of the engine, where there are several. draining: told to stop;
    calls that run may end."""

    def __init__(self, engine: Served, settings: Settings, guard: Guard, limits: Limits, number: str = "0"):
        self.engine, self.settings, self.guard, self.limits = engine, settings, guard, limits
        self.metrics = Metrics(engine, settings.name, number)
        self.tokens = Tokens(engine.tokenizer)
        self.pool = ThreadPoolExecutor(WORKERS, thread_name_prefix="commonweight-ask", initializer=alone)
        self.loaders = ThreadPoolExecutor(WORKERS, thread_name_prefix="commonweight-load", initializer=alone)
        self._loading: dict[tuple[str, str | None], asyncio.Future] = {}  # tenants that are being loaded, by task
        self.roster = Roster(engine, settings)
        self.open: set[Asked] = set()
        self.created = int(time.time())
        self.draining = self.stopped = False

    @property
    def generator(self) -> Engine:
        """The engine of a language model, for routes that only such a server has."""
        assert isinstance(self.engine, Engine)
        return self.engine

    # -- who ---------------------------------------------------------------------------------------------------------

    async def tenant(self, call: Call, model: str | None) -> str | None:
        """The tenant that a model's name means, None for the plain base. A sum as `a+0.5*b` is one too.

        Raises: Refused (404) for a name that is not there, or that the caller's key may not ask.
        """
        key: Key = call.state.key
        plain = not model or model in self.settings.names
        name = BASE if plain else str(model)
        if not plain and len(name) > LONGEST:
            raise Refused(404, f"no model has a name of {len(name):,} characters", "model")
        call.state.told["tenant"] = name if name.isprintable() else None
        try:
            asked = [name] if plain or not several(name) else list(terms(name))
        except CommonweightError as e:
            raise Refused(400, str(e), "model") from e
        if not plain and several(name) and not isinstance(self.engine, Engine):
            raise Refused(400, f"model {name!r}: sums of tenants are for language models; ask one tenant", "model")
        if not plain and (base := next((n for n in asked if n in self.settings.names), None)):
            raise Refused(400, f"model {name!r}: {base} is the plain model, which has no change to add", "model")
        for one in asked:
            if not key.may(one) or not (plain or await self.run(self._there, one)):
                whose = " or this key may not ask it" if key.tenants is not None else ""
                called = one if several(name) else model or name
                raise Refused(404, f"The model `{called}` does not exist{whose}.", "model")
        return None if plain else name

    def _there(self, name: str) -> bool:
        store = self.engine.tenants.store
        return name != COMING and (name in self.engine.host or (store is not None and name in store))

    def names(self, key: Key) -> list[str]:
        """Of all tenants that a key may ask."""
        return [n for n in self.engine.tenants.names() if key.may(n) and n not in (COMING, *self.settings.names)]

    def about(self, name: str) -> list[dict[str, Any]]:
        """Of a tenant, or of each in a sum: its method, its bytes, and whether it is in memory; of one that is not, as
        the store's manifest has it."""
        found, store = [], self.engine.tenants.store
        for one in terms(name) if several(name) else [name]:
            tenant = self.engine.host.roster.tenants.get(one)
            if tenant is not None:
                method, size = tenant.method.name, tenant.nbytes
            elif store is not None:
                try:
                    manifest = store.manifest(one)
                except (CommonweightError, OSError):
                    continue  # its requests are told what is wrong with it
                method, size = str(manifest.tenant["method"]), sum(r.numbers for r in manifest.pools.values())
            else:
                continue
            found.append({"name": one, "method": method, "bytes": size, "loaded": tenant is not None})
        return found

    async def run(self, work: Callable[..., Any], *args: Any) -> Any:
        """In a thread of the pool."""
        return await asyncio.get_running_loop().run_in_executor(self.pool, work, *args)

    # -- calls -------------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def running(self, call: Call, requests: Sequence[Request]) -> AsyncIterator[Asked]:
        """The requests of one call, while it lasts. They end with it. Raises: Refused."""
        key: Key = call.state.key
        if (many := sum(r.n for r in requests)) > (most := self.generator.max_waiting):
            told = f"{many:,} answers in one call; at most {most:,} may wait here, so that there would never be room"
            raise Refused(400, f"{told}; ask for fewer", "n" if len(requests) == 1 else "prompt")
        self.within(key, many)
        tenant, task = requests[0].tenant, requests[0].task
        edition = await self.loaded(tenant, partial(self.engine.tenants.edition, task=task), task)
        try:
            asked = await ask(self.generator, requests, self.pool, edition)
        except Full as e:
            raise Refused(429, str(e), retry=1.0) from e
        except CommonweightError as e:
            if self.engine.closed:
                raise Refused(503, str(e)) from e
            raise of_request(str(e)) from e
        account = _Account(self.metrics, asked)
        asked.watch = account.piece
        self.open.add(asked)
        try:
            yield asked
        finally:
            self.open.discard(asked)
            asked.cancel()
            usage = asked.usage
            self.limits.charge(key, usage.prompt + usage.new)
            told = account.end()
            call.state.told.update(told, prompt_tokens=usage.prompt, new_tokens=usage.new, cached_tokens=usage.cached)
            if self.settings.log_prompts:
                texts = ["".join(p.text for p in pieces) for found in asked.got for pieces in found]
                call.state.told.update(prompts=[r.prompt for r in requests], answers=texts)

    def within(self, key: Key, answers: int) -> None:
        """Whether so many more may be asked. Raises: Refused (503, 429)."""
        if self.draining:
            raise Refused(503, "the server is stopping")
        self.limits.within(key, answers)

    async def loaded(self, tenant: str | None, load: Callable[[Any], Any], task: str | None = None) -> Any:
        """What `load` makes of a tenant: by threads of their own where it is not in memory, one load for all who wait
        for it (for this task of it), so that the threads of other requests are not held back. Raises: Refused, with
        what is wrong with it."""
        if tenant is None and task is None:
            return None
        try:
            if tenant is None or self.engine.tenants.ready(tenant):
                return await self.run(load, tenant)
            return await self._load((tenant, task), load)
        except WrongTask as e:
            raise Refused(400, str(e), "task") from e
        except Unknown as e:  # it has left since it was looked for
            raise Refused(404, f"The model `{tenant}` does not exist.", "model") from e
        except (CommonweightError, OSError) as e:
            which = "" if tenant is None or several(tenant) else f"tenant {tenant!r} cannot be loaded: "
            raise Refused(400, f"{which}{self.inside(str(e))}", "model") from e

    async def _load(self, key: tuple[str, str | None], load: Callable[[Any], Any]) -> Any:
        if (earlier := self._loading.get(key)) is not None:
            try:
                return await asyncio.shield(earlier)
            except (CommonweightError, OSError):
                pass  # it had begun before this call: what was wrong with the tenant then may be over
        loading = self._loading.get(key)
        if loading is None:
            loading = asyncio.get_running_loop().run_in_executor(self.loaders, load, key[0])
            loading.add_done_callback(lambda done: self._landed(key, done))
            self._loading[key] = loading
        return await asyncio.shield(loading)

    def _landed(self, key: tuple[str, str | None], loading: asyncio.Future) -> None:
        del self._loading[key]
        if not loading.cancelled():
            loading.exception()  # whoever asked for it may have hung up: asyncio would say that nobody took it

    def inside(self, text: str) -> str:
        """A message without the path of the store, which is nobody's business."""
        store = self.engine.tenants.store
        return text if store is None else text.replace(f"{store.folder}/", "").replace(str(store.folder), "the store")

    def failed(self, ended: Piece | Answer) -> Refused | None:
        """The error that an answer ended with."""
        if ended.finish_reason == "cancelled":
            return Refused(503, "the server is stopping; this answer was not finished")
        if ended.error is None:
            return None
        return Refused(503 if self.engine.closed else 500, ended.error)

    async def watch(self) -> None:
        """Looks whether the store has other versions, as long as the server runs."""
        while self.engine.tenants.store is not None:
            try:
                for name in await self.run(self.roster.look):
                    say("newer", tenant=name)
            except (CommonweightError, OSError) as e:
                say("store", 30, error=str(e))
            await asyncio.sleep(self.settings.watch)

    # -- its end -----------------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Ends every call that runs."""
        self.stopped = True
        for asked in list(self.open):
            asked.cancel()

    @property
    def ready(self) -> bool:
        return not self.draining and not self.engine.closed


class _Account:
    """Measures one call."""

    def __init__(self, metrics: Metrics, asked: Asked):
        self.metrics, self.asked = metrics, asked
        self._last: dict[Ticket, float] = {}
        self._over: set[Ticket] = set()
        self._ends: list[str] = []
        for ticket in asked.tickets:
            metrics.begun(ticket)

    def piece(self, ticket: Ticket, piece: Piece, at: float) -> None:
        before = self._last.get(ticket)
        self._last[ticket] = at
        self.metrics.token(len(piece.tokens), None if before is None else at - before)
        if piece.finish_reason is not None:
            self._end(ticket, piece.finish_reason, at)

    def _end(self, ticket: Ticket, reason: str, at: float) -> None:
        self._over.add(ticket)
        self._ends.append(reason)
        self.metrics.over(ticket, reason, at)

    def end(self) -> dict[str, Any]:
        """Those that have not ended are cancelled by now. What the log says of the call."""
        for ticket in self.asked.tickets:
            if ticket not in self._over:
                self._end(ticket, "cancelled", time.monotonic())
        firsts = [t.first - t.started for t in self.asked.tickets if t.first is not None]
        return {
            "finish": ",".join(dict.fromkeys(self._ends)),
            "first_token_seconds": round(min(firsts), 4) if firsts else None,
            "answers": len(self._ends),
        }
