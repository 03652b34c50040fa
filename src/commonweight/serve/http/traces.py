"""OpenTelemetry: one span for each call, where an address to send it to is configured.

The variables are OpenTelemetry's own: `OTEL_EXPORTER_OTLP_ENDPOINT` (or `..._TRACES_ENDPOINT`) turns it on,
`OTEL_SERVICE_NAME`, `OTEL_EXPORTER_OTLP_HEADERS` and the sampler's mean what they mean everywhere. A span has the names
of the conventions for generative models, the tenant as the model; it goes on with the trace of the caller
(`traceparent`). Prompts and answers are never in it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from .logs import say

_OPERATIONS = {
    "/v1/chat/completions": "chat", "/v1/responses": "chat", "/v1/completions": "text_completion",
    "/v1/embeddings": "embeddings",
}  # fmt: skip
# what the log says of a call -> the attribute
_NAMES = {
    "tenant": "gen_ai.request.model", "prompt_tokens": "gen_ai.usage.input_tokens",
    "new_tokens": "gen_ai.usage.output_tokens", "cached_tokens": "gen_ai.usage.cache_read.input_tokens",
    "first_token_seconds": "gen_ai.latency.time_to_first_token", "id": "commonweight.request.id",
    "answers": "commonweight.answers",
}  # fmt: skip


class Traces:
    """tracer: of OpenTelemetry. close: called at the server's end, sends what is left."""

    def __init__(self, tracer: Any, close: Any = lambda: None):
        self.tracer, self.close = tracer, close
        self._extract = import_module("opentelemetry.propagate").extract
        kinds = import_module("opentelemetry.trace")
        self._server, self._status, self._code = kinds.SpanKind.SERVER, kinds.Status, kinds.StatusCode

    def begin(self, method: str, path: str, headers: Mapping[str, str]) -> Any:
        """The span of a call."""
        context = self._extract({k: headers[k] for k in ("traceparent", "tracestate", "baggage") if k in headers})
        told = {"http.request.method": method, "url.path": path, "gen_ai.provider.name": "commonweight"}
        return self.tracer.start_span(f"{method} {path}", context=context, kind=self._server, attributes=told)

    def end(self, span: Any, status: int, told: Mapping[str, Any]) -> None:
        """told: what the log says of the call."""
        path = str(told["path"])
        if path in _OPERATIONS:
            span.set_attribute("gen_ai.operation.name", _OPERATIONS[path])
            span.update_name(f"{_OPERATIONS[path]} {told.get('tenant') or ''}".strip())
        for name, attribute in _NAMES.items():
            if told.get(name) is not None:
                span.set_attribute(attribute, told[name])
        if told.get("finish"):
            span.set_attribute("gen_ai.response.finish_reasons", str(told["finish"]).split(","))
        if status:
            span.set_attribute("http.response.status_code", status)
        if not status or status >= 500:
            span.set_status(self._status(self._code.ERROR))
        span.end()


def configured(environ: Mapping[str, str] = os.environ) -> Traces | None:
    """None where no address is given, OpenTelemetry is turned off, or its packages are missing, which the log says."""
    asked = environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or environ.get("OTEL_EXPORTER_OTLP_ENDPOINT")
    off = environ.get("OTEL_SDK_DISABLED", "").lower() == "true" or environ.get("OTEL_TRACES_EXPORTER") == "none"
    if not asked or off:
        return None
    kind = environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or environ.get("OTEL_EXPORTER_OTLP_PROTOCOL") or "http"
    try:
        way = "grpc" if kind == "grpc" else "http"
        exporter = import_module(f"opentelemetry.exporter.otlp.proto.{way}.trace_exporter").OTLPSpanExporter()
        sdk, export = import_module("opentelemetry.sdk.trace"), import_module("opentelemetry.sdk.trace.export")
        resource = import_module("opentelemetry.sdk.resources").Resource
    except ImportError as e:
        say("no traces", 30, error=f"an address of OpenTelemetry is set, but {e.name} is not installed: pip install "
            "'commonweight[otel]'" + (" opentelemetry-exporter-otlp-proto-grpc" if kind == "grpc" else ""))  # fmt: skip
        return None
    named = {} if environ.get("OTEL_SERVICE_NAME") else {"service.name": "commonweight"}
    provider = sdk.TracerProvider(resource=resource.create(named))
    provider.add_span_processor(export.BatchSpanProcessor(exporter))
    return Traces(provider.get_tracer("commonweight.serve"), provider.shutdown)
