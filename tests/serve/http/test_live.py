"""Over a real connection: clients that hang up, a server that is told to stop."""

from __future__ import annotations

import gc
import http.client
import json
import signal
import socket
from types import SimpleNamespace
from urllib.parse import urlsplit

import pytest

from commonweight.serve.http import run

from ..served import prompt
from . import shop
from .live import live, until

LONG = {"model": "a", "prompt": prompt(1), "max_tokens": 240, "ignore_eos": True}


@pytest.fixture(scope="module")
def host():
    return shop.host()


class Asked:
    """A connection on which a completion was asked for; nothing is read yet."""

    def __init__(self, address, **more):
        self.to = http.client.HTTPConnection(urlsplit(address).netloc, timeout=30)
        self.to.request("POST", "/v1/completions", json.dumps({**LONG, **more}), {"content-type": "application/json"})
        self.got = None

    def response(self):
        self.got = self.got or self.to.getresponse()
        return self.got

    def close(self):
        if self.got is not None:
            self.got.close()
        self.to.close()


@pytest.fixture
def ask():
    made = []

    def asked(address, **more):
        made.append(Asked(address, **more))
        return made[-1]

    yield asked
    for one in made:
        one.close()


@pytest.fixture
def slow(monkeypatch):
    """Steps that take a while, so that there is time to hang up."""
    import time

    from commonweight.serve.engine import Engine

    step = Engine._step
    monkeypatch.setattr(Engine, "_step", lambda self, *args: (time.sleep(0.02), step(self, *args))[1])


@pytest.mark.parametrize("stream", [False, True])
def test_who_hangs_up_is_answered_no_more(host, slow, ask, stream):
    with live(host) as (address, server, engine):
        to = ask(address, stream=stream, n=3)
        until(lambda: engine.running == 3 and server.service.open)
        if stream:
            to.response().fp.readline()
        (asked,) = server.service.open
        to.close()
        until(lambda: engine.running == 0)
        assert all(t.reason == "cancelled" and len(t.tokens) < 240 for t in asked.tickets)
        until(lambda: not server.service.open)
        assert b'finished_reason="abort",model_name="org/tiny"} 3.0' in server.service.metrics.text


def test_what_runs_may_end(host, slow, ask):
    with live(host) as (address, server, engine):
        to = ask(address, max_tokens=20)
        until(lambda: engine.running == 1)
        server.handle_exit(signal.SIGTERM, None)
        assert not server.service.ready
        got = json.loads(to.response().read())
        assert got["usage"]["completion_tokens"] == 20
        until(lambda: refused(address))


def refused(address):
    try:
        socket.create_connection(("127.0.0.1", urlsplit(address).port), timeout=5).close()
    except OSError:
        return True
    return False


@pytest.mark.parametrize("stream", [False, True])
def test_what_does_not_end_is_ended_with_an_error(host, slow, ask, stream):
    with live(host, drain=0.1) as (address, server, engine):
        to = ask(address, stream=stream)
        until(lambda: engine.running == 1)
        server.handle_exit(signal.SIGTERM, None)
        got = to.response()
        told = got.read().decode()
        assert "the server is stopping" in told
        assert told.endswith("data: [DONE]\n\n") if stream else got.status == 503


def test_a_second_signal_ends_at_once_and_closes_the_engine(host, slow, ask, caplog):
    with live(host, drain=60) as (address, server, engine):
        ask(address)
        until(lambda: engine.running == 1)
        server.handle_exit(signal.SIGTERM, None)
        server.handle_exit(signal.SIGTERM, None)
        until(lambda: engine.running == 0)
        until(lambda: refused(address))
    assert "in lifespan" not in caplog.text  # the app has ended by itself, and closed what it stands on


def test_a_time_limit_ends_an_answer_with_what_it_has(host, slow, ask):
    with live(host, timeout=0.3) as (address, _, _):
        got = json.loads(ask(address).response().read())
        assert got["choices"][0]["finish_reason"] == "length" and got["choices"][0]["stop_reason"] == "timeout"
        assert 0 < got["usage"]["completion_tokens"] < 240


def test_a_body_that_does_not_come_is_not_waited_for(host):
    head = b"%s HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 99\r\n\r\n{"
    with live(host, timeout=0.2) as (address, server, _):
        for path in (b"POST /v1/completions", b"PUT /v1/tenants/x"):
            with socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])), 20) as one:
                one.sendall(head % path)
                assert one.recv(4096).startswith(b"HTTP/1.1 408 ")
        assert not server.service.open


def test_a_full_queue_is_told_when_to_come_again(host, ask, monkeypatch):
    with live(host) as (address, _, engine):
        monkeypatch.setattr(type(engine._manager), "waiting", engine.max_waiting)
        got = ask(address).response()
        told = json.loads(got.read())["error"]
        assert got.status == 429 and got.headers["retry-after"] and told["type"] == "RateLimitError"
        monkeypatch.undo()
        engine.max_waiting = 2
        for more, field in (({"n": 3}, "n"), ({"prompt": [[5]] * 3}, "prompt")):
            got = ask(address, **more).response()
            told = json.loads(got.read())["error"]
            assert (
                got.status == 400 and told["param"] == field and "3 answers in one call; at most 2" in told["message"]
            )


def test_no_collection_of_garbage_looks_at_what_is_there_when_it_starts(monkeypatch):
    there, seen = [[]], []

    def looked_at() -> bool:
        return any(x is there for x in gc.get_objects())

    app = SimpleNamespace(state=SimpleNamespace(service=SimpleNamespace(settings=SimpleNamespace(drain=1))))
    said = SimpleNamespace(run=lambda sockets: seen.append(looked_at()))
    monkeypatch.setattr(run, "server", lambda app, drain: said)
    assert looked_at()
    with socket.socket() as sock:
        run.run(app, sock)
    assert seen == [False]
