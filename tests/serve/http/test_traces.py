"""What is measured of calls: vLLM's metrics, and spans of OpenTelemetry where an address is configured."""

from __future__ import annotations

import logging
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from commonweight.serve.http import traces

from ..served import prompt
from . import shop

pytest.importorskip("opentelemetry.trace")
BODY = {"model": "a", "prompt": prompt(1), "max_tokens": 3, "temperature": 0, "ignore_eos": True}
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Span:
    def __init__(self, name, context, kind, attributes):
        self.name, self.context, self.told, self.ended, self.status = name, context, dict(attributes), 0, None

    def set_attribute(self, name, value):
        self.told[name] = value

    def update_name(self, name):
        self.name = name

    def set_status(self, status):
        self.status = status

    def end(self):
        self.ended += 1


class Tracer:
    def __init__(self):
        self.spans = []

    def start_span(self, name, **more):
        self.spans.append(Span(name, **more))
        return self.spans[-1]


def test_a_span_for_each_call(monkeypatch):
    tracer = Tracer()
    monkeypatch.setattr(traces, "configured", lambda: traces.Traces(tracer))
    with shop.client(shop.host()) as client:
        client.post("/v1/completions", json=BODY, headers={"traceparent": PARENT, "x-request-id": "mine"})
        client.post("/v1/completions", json={**BODY, "stream": True})
        client.post("/v1/completions", json={**BODY, "model": "nobody"})
        client.get("/health")
    first, stream, unknown = tracer.spans
    assert first.name == "text_completion a" and first.told["gen_ai.operation.name"] == "text_completion"
    assert first.told["gen_ai.usage.output_tokens"] == 3 and first.told["gen_ai.usage.input_tokens"] == len(prompt(1))
    assert first.told["gen_ai.response.finish_reasons"] == ["length"] and first.told["http.response.status_code"] == 200
    assert first.told["commonweight.request.id"] == "mine" and first.told["gen_ai.latency.time_to_first_token"] >= 0
    (parent,) = first.context.values()
    assert f"{parent.get_span_context().trace_id:032x}" == PARENT.split("-")[1]
    assert stream.told["gen_ai.usage.output_tokens"] == 3
    assert unknown.told["http.response.status_code"] == 404 and unknown.status is None
    assert [s.ended for s in tracer.spans] == [1, 1, 1]


def test_when_it_is_on(caplog, monkeypatch):
    at = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"}
    assert traces.configured({}) is None and traces.configured({**at, "OTEL_SDK_DISABLED": "true"}) is None
    monkeypatch.setitem(__import__("sys").modules, "opentelemetry.sdk.trace", None)
    with caplog.at_level(logging.WARNING, "commonweight.serve"):
        assert traces.configured(at) is None
    assert "pip install 'commonweight[otel]'" in caplog.records[0].told["error"]


def test_over_the_network(monkeypatch):
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http.trace_exporter", exc_type=ImportError)
    came = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self):
            came.append((self.path, self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_):
            """Quiet."""

    with HTTPServer(("127.0.0.1", 0), Collector) as collector:
        threading.Thread(target=collector.serve_forever, daemon=True).start()
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{collector.server_port}")
        with shop.client(shop.host()) as client:
            assert client.post("/v1/completions", json=BODY).status_code == 200
        collector.shutdown()
    assert came[0][0] == "/v1/traces" and b"text_completion a" in came[0][1] and b"commonweight" in came[0][1]


def test_metrics_by_vllms_names():
    with shop.client(shop.host()) as client:
        for model in ("a", "base"):
            client.post("/v1/completions", json={**BODY, "model": model})
        lines = client.get("/metrics").text.splitlines()
        labels = 'engine="0",model_name="org/tiny"'
        for name, value in {
            "request_queue_time_seconds_count": 2, "request_prefill_time_seconds_count": 2,
            "request_decode_time_seconds_count": 2, "request_inference_time_seconds_count": 2,
            "num_preemptions_total": 0, "iteration_tokens_total_sum": None, "kv_cache_usage_perc": 0,
        }.items():  # fmt: skip
            (line,) = [x for x in lines if x.startswith(f"vllm:{name}{{")]
            assert labels in line or 'model_name="org/tiny",engine="0"' in line
            assert value is None or float(line.split()[-1]) == value, line
        assert any(x.startswith("vllm:cache_config_info{") and 'block_size="8"' in x for x in lines)
        assert any(x.startswith("vllm:lora_requests_info{") and 'running_lora_adapters=""' in x for x in lines)


def test_who_runs_and_who_waits(monkeypatch):
    go, began = threading.Event(), threading.Event()
    with shop.client(shop.host()) as client:
        engine = client.app.state.service.engine

        def slow(batch, processor):
            for ticket, _ in batch:
                ticket.begun = ticket.started
            began.set()
            assert go.wait(60)
            engine._step(batch, processor)

        monkeypatch.setattr(engine._manager, "_step", slow)
        asked = threading.Thread(target=client.post, args=("/v1/completions",), kwargs={"json": {**BODY, "n": 3}})
        asked.start()
        assert began.wait(60)
        text = client.get("/metrics").text
        go.set()
        asked.join(60)
    assert 'running_lora_adapters="a"' in text
    (used,) = [float(x.split()[-1]) for x in text.splitlines() if x.startswith("vllm:kv_cache_usage_perc{")]
    pages = 3 * -(-len(prompt(1)) // 8)
    assert used == pytest.approx(pages * 8 / engine.cache_tokens)
