"""What is measured of a server: vLLM's names where they mean the same, in Prometheus' text.

One label for the model and none for tenants, so that a thousand tenants make no thousand series; what is loaded is told
by level, and by name for the last few that were used.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric

from ..engine import Engine
from ..ticket import Ticket
from .served import Served

NAMED = 32  # tenants that are told by name
_LABELS = ["model_name", "engine"]
_SECONDS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640, 2560)  # fmt: skip  # noqa: E501
_BETWEEN = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)
_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000)
# why an answer ended -> as vLLM says it, which has no limit of time
_REASONS = {"stop": "stop", "length": "length", "cancelled": "abort", "timeout": "timeout", "error": "error"}


class Metrics:
    """One server's. model, number: the labels that all series have."""

    def __init__(self, engine: Served, model: str, number: str = "0"):
        self.registry = CollectorRegistry()
        self._labels = {"model_name": model, "engine": number}
        self.prompt = self._counter("vllm:prompt_tokens", "Tokens of prompts.")
        self.new = self._counter("vllm:generation_tokens", "Tokens of answers.")
        self.queries = self._counter("vllm:prefix_cache_queries", "Tokens that the cache of prefixes was asked for.")
        self.hits = self._counter("vllm:prefix_cache_hits", "Tokens that the cache of prefixes had.")
        self.first = self._histogram("vllm:time_to_first_token_seconds", "From request to first token.", _SECONDS)
        self.between = self._histogram("vllm:inter_token_latency_seconds", "Between two tokens.", _BETWEEN)
        self.whole = self._histogram("vllm:e2e_request_latency_seconds", "From request to last token.", _SECONDS)
        self.per = self._histogram(
            "vllm:request_time_per_output_token_seconds", "From first to last token, by the tokens after the first.",
            _BETWEEN,
        )  # fmt: skip
        self.prompts = self._histogram("vllm:request_prompt_tokens", "Tokens of a prompt.", _TOKENS)
        self.answers = self._histogram("vllm:request_generation_tokens", "Tokens of an answer.", _TOKENS)
        self.most = self._histogram("vllm:request_params_max_tokens", "The most new tokens of a request.", _TOKENS)
        self.preempted = self._counter("vllm:num_preemptions", "Answers that gave their place up and began again.")
        self.queued, self.prefill, self.decode, self.inference = (
            self._histogram(f"vllm:request_{name}_time_seconds", told, _SECONDS)
            for name, told in (
                ("queue", "From request to its first step."), ("prefill", "From the first step to the first token."),
                ("decode", "From first to last token."), ("inference", "From the first step to the last token."),
            )
        )  # fmt: skip
        ended = Counter(
            "vllm:request_success", "Answers that have ended, by why.", [*_LABELS, "finished_reason"],
            registry=self.registry,
        )  # fmt: skip
        self.ended = {r: ended.labels(**self._labels, finished_reason=told) for r, told in _REASONS.items()}
        self.refused = refusals(self.registry, self._labels)
        self.registry.register(_Now(engine, self._labels))
        if isinstance(engine, Engine):
            tokens = self._histogram("vllm:iteration_tokens_total", "Tokens of a step, prompts included.", _TOKENS)
            engine.stepped = tokens.observe

    def _counter(self, name: str, told: str) -> Any:
        return Counter(name, told, _LABELS, registry=self.registry).labels(**self._labels)

    def _histogram(self, name: str, told: str, buckets: tuple[float, ...]) -> Any:
        return Histogram(name, told, _LABELS, registry=self.registry, buckets=buckets).labels(**self._labels)

    def begun(self, ticket: Ticket) -> None:
        self.prompt.inc(len(ticket.prompt))
        self.queries.inc(len(ticket.prompt))
        self.prompts.observe(len(ticket.prompt))
        self.most.observe(ticket.most)

    def token(self, new: int, since: float | None) -> None:
        """So many tokens came; since: seconds after the one before."""
        self.new.inc(new)
        if since is not None and new:
            self.between.observe(since)

    def over(self, ticket: Ticket, reason: str, now: float) -> None:
        new = len(ticket.tokens)
        self.hits.inc(ticket.cached)
        self.answers.observe(new)
        self.whole.observe(now - ticket.started)
        self.ended[reason if reason in self.ended else "error"].inc()
        self.preempted.inc(ticket.preempted)
        if ticket.begun is not None:
            self.queued.observe(ticket.begun - ticket.started)
            self.inference.observe(now - ticket.begun)
        if ticket.first is not None:
            self.prefill.observe(ticket.first - (ticket.begun or ticket.first))
            self.decode.observe(now - ticket.first)
            self.first.observe(ticket.first - ticket.started)
            if new > 1:
                self.per.observe((now - ticket.first) / (new - 1))

    def read(self, tokens: Sequence[int], reason: str, seconds: float) -> None:
        """Texts that an encoder has read, of one call."""
        for n in tokens:
            self.prompt.inc(n)
            self.prompts.observe(n)
            self.ended[reason].inc()
        self.whole.observe(seconds)

    @property
    def text(self) -> bytes:
        return generate_latest(self.registry)


def refusals(registry: CollectorRegistry, labels: Mapping[str, str]) -> Callable[[int], None]:
    """What counts calls that were answered by this code."""
    told = "Calls that were answered by an error, by its code."
    found = Counter("commonweight:refused_requests", told, [*labels, "code"], registry=registry)
    return lambda code: found.labels(**labels, code=str(code)).inc()


def _names(tickets: Sequence[Ticket]) -> str:
    """Of their tenants, once each."""
    return ",".join(sorted({t.edition.name for t in tickets if t.edition is not None})[:NAMED])


class _Now:
    """What is so at the moment that it is asked."""

    def __init__(self, engine: Served, labels: dict[str, str]):
        self.engine, self.labels = engine, labels

    def collect(self) -> Iterator[Metric]:
        engine = self.engine
        yield self._one("vllm:num_requests_running", "Answers that are being made.", engine.running)
        yield self._one("vllm:num_requests_waiting", "Answers that have not begun.", engine.waiting)
        if isinstance(engine, Engine):
            yield from self._engine(engine)
        resident = engine.tenants.resident()
        count = self._many("commonweight:tenants_loaded", "Tenants in memory, by where they come from.", "level")
        size = self._many("commonweight:tenants_bytes", "Bytes of tenants in memory; shared pools count once.", "level")
        for level in ("host", "store"):
            count.add_metric([*self.labels.values(), level], sum(r.level == level for r in resident))
        size.add_metric([*self.labels.values(), "store"], engine.tenants.nbytes)
        yield count
        yield size
        named = self._many(
            "commonweight:tenant_bytes", f"Bytes of each of the {NAMED} tenants that were used last.", "tenant"
        )
        for r in resident[-NAMED:]:
            named.add_metric([*self.labels.values(), r.name], r.nbytes)
        yield named

    def _engine(self, engine: Engine) -> Iterator[Metric]:
        """Of a language model's."""
        answers, page = engine.open, engine.page_size
        begun = [t for t in answers if t.begun is not None]
        pages = sum(-(-(len(t.prompt) + len(t.tokens)) // page) for t in begun)
        used = min(1.0, pages * page / engine.cache_tokens)
        yield self._one("vllm:kv_cache_usage_perc", "Share of the cache that answers hold; 1 is all of it.", used)
        config = {
            "block_size": str(page), "num_gpu_blocks": str(engine.cache_tokens // page),
            "enable_prefix_caching": str(engine.prefix_cache),
        }  # fmt: skip
        info = GaugeMetricFamily("vllm:cache_config_info", "The cache's settings.", labels=[*self.labels, *config])
        info.add_metric([*self.labels.values(), *config.values()], 1)
        yield info
        names = {
            "running_lora_adapters": _names(begun),
            "waiting_lora_adapters": _names([t for t in answers if t.begun is None]),
            "max_lora": "0",  # there is no such limit
        }
        told = f"When asked; labels: whose answers run and wait, at most {NAMED} names each."
        asked = GaugeMetricFamily("vllm:lora_requests_info", told, labels=[*self.labels, *names])
        asked.add_metric([*self.labels.values(), *names.values()], time.time())
        yield asked

    def _one(self, name: str, told: str, value: float) -> Metric:
        found = GaugeMetricFamily(name, told, labels=list(self.labels))
        found.add_metric(list(self.labels.values()), value)
        return found

    def _many(self, name: str, told: str, label: str) -> GaugeMetricFamily:
        return GaugeMetricFamily(name, told, labels=[*self.labels, label])
