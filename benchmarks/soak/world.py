"""The server that a soak talks to, and whether what it answered was right."""

from __future__ import annotations

import gc
import json
import logging
import re
import shutil
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

from commonweight import Commons, Engine, Host
from commonweight.serve.http import Settings, make

from .calls import Calls, Said
from .ledger import BROKEN, GONE, Ledger
from .shop import BAD, Shop, canary, secret


class Wrong(AssertionError):
    """What must not happen did. seen: the first one; a server that was found wrong is not asked again."""

    seen: Wrong | None = None

    def __init__(self, told: str):
        super().__init__(told)
        Wrong.seen = Wrong.seen or self


@dataclass
class Counts:
    """Of a whole soak. ties: answers that differ only behind a token that was not sure."""

    requests: int = 0
    tokens: int = 0
    ties: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    ends: Counter[str] = field(default_factory=Counter)


class World:
    """memory: bytes of tenants that the engine keeps loaded; less than all need, so that they are evicted."""

    def __init__(self, shop: Shop, folder: Path, memory: int | None = None):
        self.shop, self.folder, self.counts = shop, folder, Counts()
        self.drawn: dict[Any, tuple[int, ...]] = {}
        self.skew, self.steps = 0.0, deque[str](maxlen=200)  # what was done last
        Wrong.seen = None
        clock = time.time
        self._patch = mock.patch("time.time", lambda: clock() + self.skew)
        self._patch.start()
        self.logged = _Logged(logging.INFO)
        log = logging.getLogger("commonweight.serve")
        self._before = log.level, log.propagate
        log.setLevel(logging.INFO)
        log.propagate = False
        log.addHandler(self.logged)
        if memory is None:
            memory = 3 * max(p.stat().st_size for p in shop.files.values())
        self.host = Host(shop.base)
        self.engine = Engine(
            self.host, store=Commons(folder / "store"), tokenizer=shop.tokenizer, max_requests=8, max_batch_tokens=64,
            cache_tokens=1024, page_size=8, max_waiting=4096, tenant_memory=memory,
        )  # fmt: skip
        self.app = make(self.engine, Settings(name="org/tiny", watch=3600.0))
        self.service = self.app.state.service
        self.calls = Calls(self.app)
        self.store = Commons(folder / "store")
        self.ledger = Ledger(shop.names, shop.versions)
        self.reset()

    def close(self) -> None:
        self.calls.close()
        self.engine.close()
        self.host.close()
        log = logging.getLogger("commonweight.serve")
        log.removeHandler(self.logged)
        log.level, log.propagate = self._before
        self._patch.stop()

    def did(self, kind: str, *what: Any, asked: bool = False) -> None:
        self.counts.requests += asked
        self.counts.kinds[kind] += 1
        self.steps.append(f"{kind} {' '.join(map(str, what))}")

    # -- whether it was right ----------------------------------------------------------------------------------------

    def right(
        self, name: str | None, may: Iterable[Any], prompt: Sequence[int], tokens: Sequence[int]
    ) -> None:  # fmt: skip
        """The tokens of a greedy answer, which may have been cut short, are what a version says alone."""
        self._one_of(name, may, prompt, len(tokens), tuple, tuple(tokens))

    def reads(self, name: str | None, may: Iterable[Any], prompt: Sequence[int], most: int, text: str) -> None:
        """The same of the text of a whole answer."""
        self._one_of(name, may, prompt, most, self.shop.text, text)

    def _one_of(
        self, name: str | None, may: Iterable[Any], prompt: Sequence[int], n: int, form: Callable[[Any], Any], got: Any
    ) -> None:  # fmt: skip
        """A tie: it is right up to a token that rounding may decide."""
        self.counts.tokens += n
        found = [self.shop.told(name, v, prompt) for v in may if v not in (GONE, BROKEN, BAD)]
        wanted = [form(t.tokens[:n]) for t in found]
        if got in wanted or BAD in may:  # what an ill one says is its own affair
            return
        sure = [form(t.tokens[: t.sure.index(False)]) for t in found if not all(t.sure[:n])]
        if any(got[: len(x)] == x for x in sure):
            self.counts.ties += 1
            return
        raise Wrong(f"{name} ({sorted(map(str, may))}) to {list(prompt)}: {got}; wanted one of {wanted}")

    def own(self, name: str | None, may: Iterable[Any], text: str, prompt: Sequence[int] = ()) -> None:
        """No canary but the tenant's own ones, of the versions that it may be; and what these say of themselves."""
        if "canary" not in text or BAD in may:
            return
        found = set(re.findall(r"canary-[\w-]+", text))
        mine = set() if name is None else {secret(name), *(canary(name, v) for v in may if isinstance(v, int))}
        if strange := found - mine:
            told = [self.shop.told(name, v, prompt) for v in may if v not in (GONE, BROKEN, BAD)] if prompt else []
            strange -= {self.shop.words[t] for one in told for t in one.tokens}
        if strange:
            raise Wrong(f"{name} ({sorted(map(str, may))}) was told {sorted(strange)} in {text[:300]}")

    def refused(self, said: Said, *codes: int) -> None:
        """An error in OpenAI's form, and nobody's words in it."""
        self.counts.ends[str(said.status)] += 1
        told = said.json.get("error", {}) if said.raw[:1] == b"{" else {}
        good = said.status in codes and set(told) == {"message", "type", "param", "code"}
        if not good or told["code"] != said.status:
            raise Wrong(f"wanted one of {codes}, got {said.status}: {said.raw[:300]!r}")

    # -- between two runs --------------------------------------------------------------------------------------------

    def quiet(self) -> None:
        """Nothing runs, nothing waits, nothing is held. Raises: Wrong."""
        scheduler = self.engine._manager.batch_processor.scheduler
        _until(lambda: not self.engine.running and not self.engine.waiting and not self.service.open)
        if self.engine.closed:
            raise Wrong("the engine has stopped")
        cache = self.engine._manager.batch_processor.cache
        _until(lambda: not any(a.block_table for a in cache.cache_allocators.values()))
        if scheduler.active_requests or scheduler.waiting_requests or scheduler.waiting_requests_order:
            raise Wrong("the scheduler holds requests that have ended")
        if any("canary" in line for line in self.logged.lines):
            raise Wrong(f"the log has words of a prompt: {next(x for x in self.logged.lines if 'canary' in x)}")
        if bad := [x for x in self.logged.lines if '"failed"' in x]:
            raise Wrong(f"a request failed inside: {bad[0]}")
        self.logged.lines.clear()

    def reset(self) -> None:
        """As at the start: each tenant's first version in the store, none in memory."""
        self.skew = 0.0
        for name in list(self.host):
            self.engine.unload(name)
        shutil.rmtree(self.store.folder / "tenants")
        shutil.rmtree(self.store.folder / "pools")
        for part in ("tenants", "pools"):
            (self.store.folder / part).mkdir()
        (self.store.folder / "index.txt").unlink(missing_ok=True)
        self.ledger = Ledger(self.shop.names, self.shop.versions)
        for name in self.shop.names:
            self.store.publish_file(self.shop.files[name, 1], name)
            self.ledger.put(name, 1)
        self.service.roster.look()
        gc.collect()


class _Logged(logging.Handler):
    def __init__(self, level: int):
        super().__init__(level)
        self.lines: list[str] = []
        self._guard = threading.Lock()

    def emit(self, record: logging.LogRecord) -> None:
        told = getattr(record, "told", {})
        with self._guard:
            self.lines.append(json.dumps([record.getMessage(), told], default=str) + str(record.exc_info or ""))
            del self.lines[:-5000]


def _until(so: Callable[[], bool], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not so():
        if time.monotonic() > end:
            raise Wrong(f"it never came: {so.__code__.co_names}")
        time.sleep(0.002)
