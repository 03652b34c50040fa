"""The engine of encoders: texts of many tenants in one batch, by length, without a server."""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..commons import Commons
from ..core import CommonweightError, counted
from ..host import Host, Tenant
from ..host.pools import stored
from ..host.route import Route
from ..host.said_tasks import none
from . import check, outputs, prompts, teams
from .borrowed import borrow, drops, give_back, steady
from .device import entry
from .engine import Full
from .frozen import finite
from .outputs import Outputs
from .readings import Classified, Embedding, Input, Ranked
from .tenants import Tenants

_LOG = logging.getLogger(__name__)
_LENGTH = 512  # tokens of a text where neither model nor tokenizer says


class Reading:
    """One text that waits or is read, and for whom. what: "vectors" or "scores"."""

    def __init__(self, what: str, tenant: Tenant | None, ids: list[int], types: list[int] | None):
        self.what, self.tenant, self.ids, self.types = what, tenant, ids, types
        self.found: Future[Tensor] = Future()

    @property
    def readers(self) -> tuple[Tenant, ...]:
        return () if self.tenant is None else (self.tenant,)

    @property
    def reason(self) -> str | None:
        """Why it is over, None while it is not."""
        return "stop" if self.found.done() else None


class Encoder:
    """Many tenants of one encoder: vectors, classes and ranks in batches of texts of like length.

    model: a `Host` (of `adapt.open_host`, or of a model of transformers), a model, or a folder or name. store: a
    `Commons` or its folder; a tenant that is not on the host is looked for there. tokenizer: None: the one beside the
    model. task, dtype, device, pool: for a folder or name, see `outputs.opened`.

    max_batch_tokens: of one pass, padding included. max_requests: texts of one pass. max_waiting: texts that may wait;
    more are refused. tenant_memory: bytes of tenants that are kept loaded from the store; None: all.

    A row answers as its tenant alone: numbers that are not finite, and an error of a tenant, end that tenant's texts
    alone. At start texts of different lengths go through together and apart: a model where they differ is refused.
    Raises: CommonweightError for a model that cannot be served, with the reason.
    """

    def __init__(
        self,
        model: Host | nn.Module | str | Path,
        *,
        store: Commons | str | Path | None = None,
        tokenizer: Any = None,
        task: str = "auto",
        dtype: str = "auto",
        device: str = "cpu",
        pool: str | None = None,
        max_requests: int = 64,
        max_batch_tokens: int = 4096,
        max_waiting: int = 4096,
        tenant_memory: int | None = None,
    ):
        check.sizes(max_requests=max_requests, max_batch_tokens=max_batch_tokens, max_waiting=max_waiting)
        check.sizes(0, tenant_memory=tenant_memory)
        self._owns = not isinstance(model, Host)
        if isinstance(model, str | Path):
            model = outputs.opened(str(model), task, dtype, device, pool)
        self.host = model if isinstance(model, Host) else Host(model)
        self.model: Any = self.host.model
        name = str(getattr(self.model, "name_or_path", None) or getattr(self.model.config, "_name_or_path", "") or "")
        self.tokenizer = tokenizer if tokenizer is not None else prompts.tokenizer_of(self.model, name)
        self.outputs = Outputs(self.model, pool)
        self.tenants = Tenants(self.host, store, tenant_memory)
        self.max_requests, self.max_batch_tokens, self.max_waiting = max_requests, max_batch_tokens, max_waiting
        told = [prompts.length_of(self.model), outputs.length_of(name), _most(self.tokenizer)]
        self.length: int | None = min((n for n in told if n), default=_LENGTH)
        self._waiting: list[Reading] = []
        self._sound: weakref.WeakKeyDictionary[Tenant, tuple] = weakref.WeakKeyDictionary()
        self._turn: dict[int, int] = {}  # when a tenant was the one that a batch was made for
        self._passes = self._running = 0
        self._wake, self._closed = threading.Condition(), False
        borrow(self.host)
        self._drops = drops(self.model)
        self._thread = threading.Thread(target=self._loop, name="commonweight-encoder", daemon=True)
        self._thread.start()
        try:
            self._same()
        except BaseException:
            self.close()
            raise
        teams.rest()

    # -- asking ----------------------------------------------------------------------------------------------------

    def embed(
        self, texts: Sequence[Input], tenant: str | None = None, normalize: bool = True, task: str | None = None
    ) -> list[Embedding]:
        """A vector a text, in their order. What goes wrong with one text is its answer's error. task: of a tenant that
        goes by tasks, which."""
        asked = self.submit("vectors", [(t, None) for t in texts], tenant, task=task)
        return [self.embedding(r, normalize) for r in asked]

    def classify(self, texts: Sequence[Input], tenant: str | None = None, task: str | None = None) -> list[Classified]:
        """The class of each text, by the head of the tenant or, for None, of the model itself. task: as for `embed`."""
        return [self.classified(r) for r in self.submit("scores", [(t, None) for t in texts], tenant, task=task)]

    def rerank(
        self, query: str, documents: Sequence[str], tenant: str | None = None, top: int | None = None,
        task: str | None = None,
    ) -> list[Ranked]:  # fmt: skip
        """The documents, nearest to the query first; top: so many of them. task: as for `embed`.

        A reader with one class (a cross-encoder) scores each pair of query and document; any other by the cosine of
        their vectors. Documents with an error stand last.
        """
        return self.ranked(self.ranking(query, documents, tenant, task=task), len(documents))[:top]

    def submit(
        self, what: str, texts: Sequence[tuple[Input, str | None]], tenant: str | None, cut: int | None = None,
        names: Sequence[str] | None = None, task: str | None = None,
    ) -> list[Reading]:  # fmt: skip
        """Puts texts, or pairs of them, into the queue and returns at once. what: "vectors" or "scores". cut: longer
        texts are cut to so many tokens, at -1 to what the model reads; None: they are refused. names: what each is
        called in an error.

        Raises: CommonweightError for a wrong tenant or task, one without classes, a text that is empty or too long,
        and a full queue; none of them is read then.
        """
        if tenant is None:
            none([task], "the plain model")
        reader = None if tenant is None else self.tenants.get(tenant).at(task)
        teams.rest()
        if what == "scores" and self.outputs.labels(reader) is None:
            whose = "the plain model" if tenant is None else f"tenant {tenant!r}"
            raise CommonweightError(f"{whose} has no classes; ask a tenant that was trained to classify")
        if reader is not None and not self._is_sound(reader):
            raise CommonweightError(f"tenant {tenant!r} has parameters that are no finite numbers")
        called = names or [f"text {i}" for i in range(len(texts))]
        made = [Reading(what, reader, *self._tokens(name, *pair, cut)) for name, pair in zip(called, texts)]
        with self._wake:
            if self.closed:
                raise CommonweightError("the encoder is closed; make a new one")
            if made and len(self._waiting) + len(made) > max(self.max_waiting, len(made) if not self._waiting else 0):
                raise Full(f"{len(self._waiting)} texts wait already, at most {self.max_waiting} may; try later")
            for reading in made:
                self.tenants.hold(reading)
            self._waiting.extend(made)
            self._wake.notify()
        return made

    def ranking(
        self, query: str, documents: Sequence[str], tenant: str | None, cut: int | None = None,
        called: tuple[str, str] = ("query", "document"), start: int = 0, task: str | None = None,
    ) -> list[Reading]:  # fmt: skip
        """What `ranked` reads ranks from: the pairs, or the query and then the documents. called: what these are in an
        error. start: the number of the first document there."""
        reader = None if tenant is None else self.tenants.get(tenant)
        names = [f"{called[1]} {i}" for i in range(start, start + len(documents))]
        if len(self.outputs.labels(reader) or ()) == 1:
            return self.submit("scores", [(query, d) for d in documents], tenant, cut, names, task)
        return self.submit("vectors", [(t, None) for t in (query, *documents)], tenant, cut, [called[0], *names], task)

    # -- answers, which wait for what they are made of ---------------------------------------------------------------

    def embedding(self, reading: Reading, normalize: bool = True) -> Embedding:
        found, error = _waited(reading)
        if found is None:
            return Embedding([], len(reading.ids), error)
        found = torch.nn.functional.normalize(found, dim=-1) if normalize else found
        return Embedding(found.tolist(), len(reading.ids))

    def classified(self, reading: Reading) -> Classified:
        labels = self.outputs.labels(reading.tenant) or ()
        found, error = _waited(reading)
        if found is None:
            return Classified("", [], labels, len(reading.ids), error)
        shares = self.outputs.shares(found[: len(labels)], reading.tenant)
        return Classified(labels[int(shares.argmax())], shares.tolist(), labels, len(reading.ids))

    def ranked(self, asked: Sequence[Reading], documents: int) -> list[Ranked]:
        if len(asked) == documents:
            pairs = [(i, r, _waited(r)) for i, r in enumerate(asked)]
            made = [
                Ranked(i, 0.0, len(r.ids), e) if v is None else
                Ranked(i, float(self.outputs.shares(v[:1], r.tenant)[0]), len(r.ids))
                for i, r, (v, e) in pairs
            ]  # fmt: skip
        else:
            (query, wrong), *found = [_waited(r) for r in asked]
            cosine = torch.nn.functional.cosine_similarity
            made = [
                Ranked(i, 0.0, len(asked[i + 1].ids), e or wrong) if v is None or query is None else
                Ranked(i, float(cosine(query, v, dim=-1)), len(asked[i + 1].ids))
                for i, (v, e) in enumerate(found)
            ]  # fmt: skip
        return sorted(made, key=lambda r: (r.error is not None, -r.score))

    # -- what it is ------------------------------------------------------------------------------------------------

    @property
    def running(self) -> int:
        """Texts of the pass that runs."""
        return self._running

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def closed(self) -> bool:
        return self._closed or not self._thread.is_alive()

    @property
    def vocabulary(self) -> int:
        found = getattr(self.model, "encoder", self.model) if self.outputs.ours else self.model
        return found.get_input_embeddings().num_embeddings

    def unload(self, name: str) -> bool:
        """Takes a tenant out of memory; texts that wait are read as it. Whether it was there."""
        return self.tenants.drop(name)

    def close(self) -> None:
        """Stops it; texts that wait get an error. The model is as it was before. Safe to call twice."""
        with self._wake:
            if self._closed:
                return
            self._closed = True
            left, self._waiting = self._waiting, []
            self._wake.notify()
        for reading in left:
            _end(reading, CommonweightError("the encoder has stopped"))
        self._thread.join()
        give_back(self.host)
        if self._owns:
            self.host.close()

    def __enter__(self) -> Encoder:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    # -- in the thread that reads ------------------------------------------------------------------------------------

    def _loop(self) -> None:
        while True:
            with self._wake:
                while not self._waiting and not self._closed:
                    teams.rest()
                    self._wake.wait()
                if self._closed:
                    return
                batch = self._taken()
                self._running = len(batch)
            self._run([r for r in batch if r.found.set_running_or_notify_cancel()])
            self._running = 0
            try:
                self.tenants.trim()
            except Exception:  # texts go on being read
                _LOG.exception("tenants that are not read could not make room")

    def _taken(self) -> list[Reading]:
        """The next batch, out of the queue: around the longest waiting text of the tenant whose turn is the longest
        ago, those of like length, of every tenant, while padding and rows have room."""
        first = min(self._waiting, key=lambda r: self._turn.get(_number(r), -1))  # min keeps the queue's order
        self._passes += 1
        self._turn[_number(first)] = self._passes
        alike = sorted((r for r in self._waiting if r.what == first.what), key=lambda r: len(r.ids))
        low = high = alike.index(first)
        while high - low + 1 < self.max_requests:
            wider = [(a, b) for a, b in ((low - 1, high), (low, high + 1)) if a >= 0 and b < len(alike)]
            wider = [(a, b) for a, b in wider if (b - a + 1) * len(alike[b].ids) <= self.max_batch_tokens]
            if not wider:
                break
            low, high = min(wider, key=lambda w: len(alike[w[1]].ids) - len(alike[w[0]].ids))
        batch = alike[low : high + 1]
        chosen = set(map(id, batch))
        self._waiting = [r for r in self._waiting if id(r) not in chosen]
        return batch

    def _run(self, batch: list[Reading]) -> None:
        if not batch:
            return
        try:
            found = self._read(batch)
        except Exception as e:
            if len(batch) == 1:
                told = e if isinstance(e, CommonweightError) else CommonweightError(f"{type(e).__name__}: {e}")
                return _end(batch[0], told)
            for reading in batch:  # the one at fault fails by itself
                self._run([reading])
            return
        for reading, row in zip(batch, found):
            labels = self.outputs.labels(reading.tenant)
            mine = row[: len(labels)] if reading.what == "scores" and labels else row
            if bool(mine.isfinite().all()):
                reading.found.set_result(row)
            else:
                who = "the model" if reading.tenant is None else f"tenant {reading.tenant.name!r}"
                _end(reading, CommonweightError(f"{who} gave scores that are no finite numbers"))

    @torch.no_grad()
    def _read(self, batch: list[Reading]) -> Tensor:
        """One pass: (rows, numbers) on the CPU."""
        steady(self.model, self._drops)
        tenants = [r.tenant for r in batch]
        alone = all(t is tenants[0] for t in tenants)
        route = Route(single=tenants[0]) if alone and tenants[0] is not None else None if alone else Route.of(tenants)
        with self.host.base.current.within(route):
            return getattr(self.outputs, batch[0].what)(self._padded(batch)).cpu()

    def _padded(self, batch: list[Reading]) -> dict[str, Tensor]:
        """On the right."""
        longest, device = max(len(r.ids) for r in batch), entry(self.model)
        pad = getattr(self.model.config, "pad_token_id", None)
        pad = getattr(self.tokenizer, "pad_token_id", None) or 0 if pad is None else pad
        fill = lambda rows, by: torch.tensor([[*r, *[by] * (longest - len(r))] for r in rows], device=device)  # noqa: E731
        out = {
            "input_ids": fill([r.ids for r in batch], pad),
            "attention_mask": fill([[1] * len(r.ids) for r in batch], 0),
        }
        if any(r.types is not None for r in batch):
            out["token_type_ids"] = fill([r.types or [0] * len(r.ids) for r in batch], 0)
        return out

    # -- its parts -------------------------------------------------------------------------------------------------

    def _tokens(self, name: str, text: Input, pair: str | None, cut: int | None) -> tuple[list[int], list[int] | None]:
        """(token ids, their types where the model has some). name: in errors. Raises: CommonweightError."""
        most = min((n for n in (self.length, cut) if n is not None and n >= 0), default=None)
        if not isinstance(text, str):
            if not isinstance(text, Sequence) or not text:
                raise CommonweightError(f"{name} is {text!r}; wanted text, or token ids")
            for token in text:
                if (
                    not isinstance(token, int | np.integer)
                    or isinstance(token, bool)
                    or not 0 <= token < self.vocabulary
                ):
                    raise CommonweightError(
                        f"{name} has the token {token!r}; wanted whole numbers from 0 to {self.vocabulary - 1}"
                    )
            ids, types = [int(t) for t in text[: None if cut is None else most]], None
        else:
            if self.tokenizer is None:
                raise CommonweightError(
                    f"{name} is text, but no tokenizer lies beside the model; give Encoder(tokenizer=)"
                )
            found = self.tokenizer(text, pair, truncation=cut is not None, max_length=None if cut is None else most)
            ids, types = list(found["input_ids"]), found.get("token_type_ids")
        if not ids:
            raise CommonweightError(f"{name} is empty; wanted at least one token")
        if cut is not None and most is not None and len(ids) > most:  # a tokenizer that has no room for its own tokens
            raise CommonweightError(
                f"{name} cannot be cut to {counted(most, 'token')}: the tokenizer's special tokens take more"
            )
        if self.length is not None and len(ids) > self.length:
            raise CommonweightError(
                f"{name} has {counted(len(ids), 'token')}, and the model reads {self.length}; shorten it"
            )
        return ids, None if types is None else list(types)

    def _is_sound(self, tenant: Tenant) -> bool:
        now = tuple(p._version for p in stored(tenant.pools))
        kept = self._sound.get(tenant)
        if kept is None or kept[0] != now:
            kept = self._sound[tenant] = (now, finite(tenant))
        return kept[1]

    def _same(self) -> None:
        """Texts of 5 and 19 tokens together and apart. Raises: CommonweightError where padding changes a vector."""
        size = self.vocabulary
        texts = [[(7 * i + 3) % size for i in range(n)] for n in (5, 19)]
        both = [Reading("vectors", None, t, None) for t in texts if self.length is None or len(t) <= self.length]
        with self.host.route(None):
            together = self._read(both)
            apart = torch.cat([self._read([r]) for r in both])
        slack = 1e-3 if next(self.model.parameters()).dtype == torch.float32 else 0.05
        far = float((together - apart).abs().max() / apart.abs().max().clamp(min=1e-9))
        if not far <= slack:
            raise CommonweightError(
                f"{type(self.model).__name__} reads a padded text otherwise than the text alone: vectors differ by "
                f"{far:.3g} of their size; it cannot be served in batches"
            )


def _number(reading: Reading) -> int:
    return -1 if reading.tenant is None else reading.tenant.number


def _waited(reading: Reading) -> tuple[Tensor | None, str | None]:
    """(what was found, the error)."""
    try:
        return reading.found.result(), None
    except CommonweightError as e:
        return None, str(e)


def _end(reading: Reading, error: CommonweightError) -> None:
    if reading.found.cancelled() or reading.found.done():
        return
    if not reading.found.running():
        reading.found.set_running_or_notify_cancel()
    reading.found.set_exception(error)


def _most(tokenizer: Any) -> int | None:
    found = getattr(tokenizer, "model_max_length", None)
    return int(found) if isinstance(found, int) and found < 1 << 30 else None
