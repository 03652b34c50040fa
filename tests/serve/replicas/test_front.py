"""The front of several replicas, whose network is left out: each is an application in this process."""

from __future__ import annotations

import json

import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from commonweight.serve import Engine
from commonweight.serve.http import Settings, keys
from commonweight.serve.replicas.call import Came, Lost
from commonweight.serve.replicas.front import fronted
from commonweight.serve.replicas.gathered import gathered
from commonweight.serve.replicas.replica import Guarded, Replica

from ..http import shop
from ..served import add, prompt

BODY = {"model": "a", "prompt": prompt(1), "max_tokens": 4, "temperature": 0, "ignore_eos": True}
CHAT = {"messages": [{"role": "user", "content": "w1"}], "temperature": 0}


class Near:
    """Two replicas. lose: how many of the next calls are lost, and after how many messages."""

    def __init__(self, engine, settings, guard=Guarded(False, False)):  # noqa: B008
        self.all = [Replica(engine, settings, guard, str(i)) for i in range(2)]
        self.lose, self.after, self.asked = 0, 0, []

    async def ask(self, call, name):
        self.asked.append((call.scope["path"], name))
        lost, self.lose = self.lose > 0, max(0, self.lose - 1)
        count = 0
        async for came in self.all[len(self.asked) % 2].answer(call):
            for message in came.messages:
                if lost and count == self.after:
                    raise Lost("it died")
                count += 1
                yield Came([message], [], None)
            yield came._replace(messages=[])

    async def metrics(self):
        return [one.metrics() for one in self.all]


@pytest.fixture(scope="module")
def engine():
    host = shop.host()
    add(host, "c")
    with Engine(host, tokenizer=shop.tokenizer(), max_requests=8, page_size=8) as found:
        yield found


@pytest.fixture
def near(engine):
    return Near(engine, Settings("org/tiny", shared=True))


@pytest.fixture
def client(near):
    with TestClient(fronted(near, Settings("org/tiny")), "http://localhost", raise_server_exceptions=False) as found:
        yield found


def test_it_answers_as_one_server(client, near):
    with shop.client(shop.host()) as alone:
        for path, body in (("/v1/completions", BODY), ("/v1/completions", {**BODY, "max_tokens": "x"}),
                           ("/v1/chat/completions", CHAT),
                           ("/nowhere", {}), ("/tokenize", {"prompt": "w1 w2"})):  # fmt: skip
            got, want = client.post(path, json=body), alone.post(path, json=body)
            assert got.status_code == want.status_code, got.text
            told = [{k: v for k, v in r.json().items() if k not in ("id", "created")} for r in (got, want)]
            assert told[0] == told[1]
    assert [m["id"] for m in client.get("/v1/models").json()["data"]] == ["base", "org/tiny", "a", "b", "c"]
    assert shop.events(client.post("/v1/completions", json={**BODY, "stream": True}).text)[-1] == "[DONE]"
    assert client.get("/health").json() == {"status": "ok"} and client.get("/").text.startswith("<!doctype html>")


def test_calls_of_one_tenant_have_one_name(client, near):
    for body in (BODY, BODY, {**BODY, "model": "b"}, {**BODY, "model": "base"}, {**BODY, "model": "tiny"}):
        client.post("/v1/completions", json=body)
    client.post("/v1/completions", content=b"[" * 5000, headers={"content-type": "application/json"})
    client.post("/v1/completions", content=rb'{"model": "\ud800"}', headers={"content-type": "application/json"})
    client.delete("/v1/tenants/a%20b")
    names = [name for _, name in near.asked]
    assert names[0] == names[1] != names[2] and len(names[0]) == 64 and names[3:6] == ["", "", ""]
    assert names[6] and names[7]


def test_a_lost_replica_is_asked_once_more(client, near):
    want = client.post("/v1/completions", json=BODY).json()["choices"]
    near.lose = 1
    got = client.post("/v1/completions", json=BODY)
    assert got.status_code == 200 and got.json()["choices"] == want and len(near.asked) == 3
    near.lose, near.after = 1, 1  # the head of the answer was there, which is not sent without its body
    assert client.post("/v1/completions", json={**BODY, "stream": True}).text.endswith("[DONE]\n\n")
    near.lose, near.after = 2, 0
    got = client.post("/v1/completions", json=BODY)
    assert got.status_code == 503 and "has ended; try again" in got.text and got.headers["retry-after"]


def test_a_stream_that_is_cut_says_so(client, near):
    near.lose, near.after = 1, 2
    got = shop.events(client.post("/v1/completions", json={**BODY, "stream": True}).text)
    assert got[-1] == "[DONE]" and got[-2]["error"]["code"] == 503 and len(near.asked) == 1
    near.lose = 1
    got = client.post("/v1/responses", json={"model": "a", "input": "w1", "stream": True}).text
    assert got.splitlines()[-2].startswith('data: {"type":"error"') and "event: error" in got


def test_a_change_is_never_made_twice(client, near):
    near.lose = 1
    got = client.delete("/v1/tenants/nobody")
    assert got.status_code == 503 and len(near.asked) == 1


def test_what_only_one_would_know_is_refused(client):
    for path, body in (("load", {"lora_name": "x", "lora_path": "/tmp"}), ("unload", {"lora_name": "a"})):
        got = client.post(f"/v1/{path}_lora_adapter", json=body)
        assert got.status_code == 400 and "several replicas answer here" in got.text


def test_limits_are_counted_before_all_replicas(engine, tmp_path):
    file = tmp_path / "keys.json"
    secret, key = keys.make("team", ["a", "base"], "3/day", "1000/day")
    keys.add(file, key)
    near = Near(engine, Settings("org/tiny", shared=True), Guarded(True, False))
    headers = {"authorization": f"Bearer {secret}"}
    with TestClient(fronted(near, Settings("org/tiny", keys=file)), "http://localhost") as client:
        assert client.post("/v1/completions", json=BODY).status_code == 401 and not near.asked
        assert client.post("/v1/completions", json={**BODY, "model": "b"}, headers=headers).status_code == 404
        assert client.get("/metrics", headers=headers).status_code == 403
        assert client.post("/v1/completions", json={**BODY, "n": 2}, headers=headers).status_code == 200
        got = client.post("/v1/completions", json=BODY, headers=headers)
        assert got.status_code == 200, got.text
        got = client.post("/v1/completions", json=BODY, headers=headers)
        assert got.status_code == 429 and "limit of requests, 3/day" in got.text and got.headers["retry-after"]
        assert client.post("/v1/load_lora_adapter", json={}, headers=headers).status_code == 403
        front = client.app.state.service
        left = front.limits.keys.buckets(key)[1]._left
        assert 1000 - left == pytest.approx(2 * len(prompt(1)) + 3 * 4, abs=0.5)


def test_the_metrics_of_all(client, near):
    client.post("/v1/completions", json=BODY)
    client.post("/v1/completions", json={**BODY, "model": "nobody"})
    families = {f.name: f for f in text_string_to_metric_families(client.get("/metrics").text)}
    engines = {s.labels["engine"] for s in families["vllm:generation_tokens"].samples}
    assert engines == {"0", "1"} and families["commonweight:replicas"].samples[0].value == 2
    assert any(s.labels["engine"] == "front" and s.value for s in families["commonweight:refused_requests"].samples)


def test_texts_of_metrics_are_gathered():
    one = '# HELP x What.\n# TYPE x gauge\nx{e="1"} 1\n'
    two = '# HELP x What.\n# TYPE x gauge\nx{e="2"} 2\n# TYPE y counter\ny_total 3\n'
    assert gathered([one, two]).decode() == (
        '# HELP x What.\n# TYPE x gauge\nx{e="1"} 1\nx{e="2"} 2\n# TYPE y counter\ny_total 3\n'
    )


def test_the_log_says_what_the_replica_knows(client, caplog):
    with caplog.at_level("INFO", "commonweight.serve"):
        client.post("/v1/completions", json=BODY, headers={"x-request-id": "mine"})
    (told,) = [r.told for r in caplog.records if r.getMessage() == "request"]
    assert told["id"] == "mine" and told["tenant"] == "a" and told["new_tokens"] == 4
    json.dumps(told)


def test_it_stops(client, near):
    client.app.state.service.draining = True
    assert client.get("/ready").status_code == 503 and client.get("/health").status_code == 200
    assert client.post("/v1/completions", json=BODY).status_code == 503
