"""A front on a real connection: clients that hang up, a server that is told to stop; an encoder behind it."""

from __future__ import annotations

import json
import signal
import time
import urllib.request

import pytest

from commonweight.serve import Encoder, Engine
from commonweight.serve.http import Settings
from commonweight.serve.replicas.front import fronted

from .. import encoders
from ..http import shop
from ..http.live import listening, until
from ..http.test_live import ask  # noqa: F401
from .test_front import Near


@pytest.fixture(scope="module")
def engine():
    with Engine(shop.host(), tokenizer=shop.tokenizer(), max_requests=8, page_size=8) as found:
        step = found._router.run
        found._router.run = lambda *args: (time.sleep(0.02), step(*args))[1]  # time to hang up
        yield found


def front(engine, **settings):
    return listening(fronted(Near(engine, Settings("org/tiny", shared=True)), Settings("org/tiny", **settings)))


@pytest.mark.parametrize("stream", [False, True])
def test_who_hangs_up_is_answered_no_more(engine, ask, stream):  # noqa: F811
    with front(engine) as (address, server):
        to = ask(address, stream=stream, n=3)
        until(lambda: engine.running == 3 and server.service.open)
        if stream:
            to.response().fp.readline()
        to.close()
        until(lambda: engine.running == 0 and not server.service.open)
        assert not engine.open


def test_what_runs_may_end(engine, ask):  # noqa: F811
    with front(engine) as (address, server):
        to = ask(address, max_tokens=20)
        until(lambda: engine.running == 1)
        server.handle_exit(signal.SIGTERM, None)
        assert json.loads(to.response().read())["usage"]["completion_tokens"] == 20


@pytest.mark.parametrize("stream", [False, True])
def test_what_does_not_end_is_ended_with_an_error(engine, ask, stream):  # noqa: F811
    with front(engine, drain=0.1) as (address, server):
        to = ask(address, stream=stream)
        until(lambda: engine.running == 1)
        server.handle_exit(signal.SIGTERM, None)
        got = to.response()
        told = got.read().decode()
        assert "the server is stopping" in told
        assert told.endswith("data: [DONE]\n\n") if stream else got.status == 503
        until(lambda: engine.running == 0)


def test_an_encoder_behind_it():
    with Encoder(encoders.host(encoders.bert()), tokenizer=shop.tokenizer()) as encoder:
        with front(encoder) as (address, _):
            body = json.dumps({"model": "three", "input": ["w1", "w2 w3"]}).encode()
            call = urllib.request.Request(f"{address}/v1/classify", body, {"content-type": "application/json"})
            with urllib.request.urlopen(call, timeout=30) as got:
                data = json.load(got)["data"]
            assert [d["label"] for d in data] == [c.label for c in encoder.classify(["w1", "w2 w3"], "three")]
            with urllib.request.urlopen(address, timeout=30) as got:
                assert b"Who reads" in got.read()
