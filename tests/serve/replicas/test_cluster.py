"""Two replicas on a Ray of this machine, of which one is killed while they work; skipped without Ray Serve."""

from __future__ import annotations

import json
import os
import signal
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial

import pytest

from commonweight.commons import Commons
from commonweight.host import Host
from commonweight.serve.http import Settings

from .. import served
from ..http import shop
from ..http.live import listening, until

pytest.importorskip("ray.serve", reason="Ray Serve is not installed", exc_type=ImportError)
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
TENANTS = [f"t{i}" for i in range(6)]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """(the model's folder, its store, a host of the same)."""
    at = tmp_path_factory.mktemp("ray")
    host = Host(served.make())
    host.model.save_pretrained(at / "model")
    shop.tokenizer().save_pretrained(at / "model")
    store = Commons(at / "shop")
    for i, name in enumerate(TENANTS):
        served.add(host, name, ("lora", "ia3")[i % 2])
        store.publish(host, name)
    return at / "model", at / "shop", host


@contextmanager
def front(place, least, most, busy=32):
    from commonweight.serve import Engine
    from commonweight.serve.replicas.cluster import Count, deployed
    from commonweight.serve.replicas.front import fronted

    opened = partial(Engine, str(place[0]), store=str(place[1]), max_requests=8, page_size=8)
    settings = Settings("org/tiny", drain=5)
    with deployed(opened, settings, Count(least, most, busy)) as cluster:
        with listening(fronted(cluster, settings)) as (address, _):
            yield address


def asked(address, tenant, i, stream, many=8):
    """The texts of the tokens; None where a stream was cut and says so."""
    body = {"model": tenant, "prompt": served.prompt(i), "max_tokens": many, "temperature": 0, "ignore_eos": True,
            "logprobs": 0, "stream": stream}  # fmt: skip
    head = {"content-type": "application/json"}
    call = urllib.request.Request(f"{address}/v1/completions", json.dumps(body).encode(), head)
    with urllib.request.urlopen(call, timeout=60) as got:
        said = got.read().decode()
    parts = [p for p in shop.events(said) if p != "[DONE]"] if stream else [json.loads(said)]
    if "error" in parts[-1]:
        assert parts[-1]["error"]["code"] == 503
        return None
    return [t for p in parts for c in p["choices"] if c["logprobs"] for t in c["logprobs"]["tokens"]]


def got(address, path):
    with urllib.request.urlopen(f"{address}{path}", timeout=60) as found:
        return found.read().decode()


def series(text, name):
    """engine -> value."""
    lines = [x for x in text.splitlines() if x.startswith(name + "{")]
    return {x.split('engine="')[1].split('"')[0]: float(x.rsplit(" ", 1)[1]) for x in lines}


def replicas():
    """Their processes, of those that this one has started."""
    import psutil

    return [p for p in psutil.Process().children(recursive=True) if "ServeReplica:" in " ".join(p.cmdline()[:1])]


def test_one_of_two_is_killed_under_load(place):
    want = {(t, i): served.alone(place[2], served.ask(t, i, max_new_tokens=8)) for t in TENANTS for i in range(4)}
    words = shop.tokenizer()
    with front(place, 2, 2) as address:
        for t in TENANTS * 3:  # one after the other: nobody has more than a share
            asked(address, t, 0, False)
        before = series(got(address, "/metrics"), "vllm:generation_tokens_total")
        loaded = series(got(address, "/metrics"), "commonweight:tenants_bytes")
        assert len(before) == 2 and sum(before.values()) == 8 * 18 and all(loaded.values())
        assert all(n % 24 == 0 for n in before.values()), "a tenant stays with its replica"
        cut, victim = 0, replicas()[0]

        def one(n):
            if n == 40:
                os.kill(victim.pid, signal.SIGKILL)
            t, i = TENANTS[n % 6], n % 4
            return t, i, asked(address, t, i, n % 3 == 0)

        with ThreadPoolExecutor(8) as pool:
            for t, i, tokens in pool.map(one, range(120)):
                if tokens is None:
                    cut += 1
                else:
                    assert tokens == [words.convert_ids_to_tokens(x) for x in want[t, i]], (t, i)
        assert cut <= 8, "streams that had begun, at most those that ran"
        until(lambda: "commonweight:replicas 2" in got(address, "/metrics"), 60)
        assert victim.pid not in [p.pid for p in replicas()]


def test_more_replicas_come_with_the_work(place):
    with front(place, 1, 2, busy=1) as address:
        assert "commonweight:replicas 1" in got(address, "/metrics")
        with ThreadPoolExecutor(6) as pool:
            end = pool.submit(until, lambda: "commonweight:replicas 2" in got(address, "/metrics"), 200)
            while not end.done():
                list(pool.map(lambda n: asked(address, TENANTS[n], n, False, 100), range(5)))
            end.result()


def test_without_a_model_there_is_no_server(tmp_path):
    from commonweight.core import CommonweightError
    from commonweight.serve import Engine
    from commonweight.serve.replicas.cluster import Count, deployed

    with pytest.raises(CommonweightError, match="no replica has come up"):
        with deployed(partial(Engine, str(tmp_path)), Settings(), Count(1, 1)):
            pass
