"""Keys: digests in a file, each with its tenants and limits; who has none, or the wrong one, is told so."""

from __future__ import annotations

import json
import os

import pytest

from commonweight.core import CommonweightError
from commonweight.serve.http import keys
from commonweight.serve.http.quota import Bucket, limit
from commonweight.serve.http.settings import guarded, loopback

from ..served import prompt
from . import shop


def made(path, name, **more):
    secret, key = keys.make(name, **more)
    keys.add(path, key)
    return secret


def test_the_file_holds_no_key(tmp_path):
    at = tmp_path / "keys.json"
    secret = made(at, "team", tenants=["a", "base"], requests="60/min", tokens="1000/h")
    assert secret not in at.read_text() and secret.startswith("cw-") and os.stat(at).st_mode & 0o077 == 0
    (key,) = keys.read(at)
    assert key.may("a") and key.may("base") and not key.may("b") and key.requests == limit("60/min")
    found = keys.Keys(at)
    assert found.find(secret) == key and found.find(secret + "x") is None and found.find(None) is None
    with pytest.raises(CommonweightError, match="there is a key 'team' already"):
        made(at, "team")
    keys.remove(at, "team")
    assert found.find(secret) is None
    with pytest.raises(CommonweightError, match="no key 'team'; there are none"):
        keys.remove(at, "team")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "no JSON"),
        ("[]", "no list 'commonweight-keys'"),
        ('{"commonweight-keys": [{}]}', "key 0 has no name"),
        ('{"commonweight-keys": [{"name": "x", "sha256": "zz"}]}', "wanted 64 hex digits"),
        ('{"commonweight-keys": [{"name": "x", "sha265": "zz"}]}', "key 0 (x) has 'sha265'"),
    ],
)
def test_files_that_are_none(tmp_path, text, told):
    at = tmp_path / "keys.json"
    at.write_text(text)
    with pytest.raises(CommonweightError) as e:
        keys.read(at)
    assert told in str(e.value) and str(at) in str(e.value)


def test_a_file_that_breaks_while_it_is_read_changes_nothing(tmp_path, caplog):
    at = tmp_path / "keys.json"
    secret = made(at, "team")
    found = keys.Keys(at)
    at.write_text("{")
    assert found.find(secret) is not None and "no JSON" in (found.problem or "")
    (said,) = caplog.records
    assert said.getMessage() == "keys" and "the keys stay as they were" in said.told["error"]


def test_limits():
    for text in ("60", "0/min", "1/fortnight", "-1/s", "1.5/s"):
        with pytest.raises(CommonweightError, match="as in 60/min"):
            limit(text)
    now = [0.0]
    bucket = Bucket(limit("2/min"), lambda: now[0])
    assert bucket.wait() == 0
    bucket.charge(2)
    assert bucket.wait() == 30
    now[0] = 30
    assert bucket.wait() == 0
    bucket.charge(3)
    assert bucket.wait() == 90


def test_nothing_unguarded_beyond_this_machine(tmp_path):
    assert loopback("127.0.0.1") and loopback("localhost") and loopback("::1") and not loopback("0.0.0.0")
    guarded("127.0.0.1", None, False)
    guarded("0.0.0.0", None, True)
    guarded("0.0.0.0", tmp_path, False)
    with pytest.raises(CommonweightError, match="no --api-keys guard the server"):
        guarded("192.168.1.2", None, False)


@pytest.fixture(scope="module")
def guard(tmp_path_factory):
    at = tmp_path_factory.mktemp("keys") / "keys.json"
    secrets = {
        "one": made(at, "one", tenants=["a"]),
        "few": made(at, "few", requests="3/day"),
        "less": made(at, "less", tokens="10/day"),
        "all": made(at, "all"),
    }
    with shop.client(shop.host(), keys=at, admin="the key of an admin") as client:
        yield client, secrets


def ask(client, secret, model="a"):
    headers = {} if secret is None else {"authorization": f"Bearer {secret}"}
    body = {"model": model, "prompt": prompt(1), "max_tokens": 2}
    return client.post("/v1/completions", json=body, headers=headers)


def test_who_may_ask(guard):
    client, secrets = guard
    assert ask(client, None).status_code == 401 and ask(client, "cw-wrong").status_code == 401
    assert ask(client, None).headers["www-authenticate"] == "Bearer"
    assert ask(client, secrets["one"]).status_code == 200
    for model in ("b", "base", "none", None):
        got = ask(client, secrets["one"], model)
        told = f"The model `{model or 'base'}` does not exist or this key may not ask it."
        assert got.status_code == 404 and got.json()["error"]["message"] == told
    assert ask(client, secrets["all"], "b").status_code == ask(client, "the key of an admin", "base").status_code == 200
    got = ask(client, secrets["one"], "a+0.5*b")
    assert got.status_code == 404 and "`b` does not exist or this key may not ask it" in got.json()["error"]["message"]
    assert ask(client, secrets["one"], "0.5*a").status_code == ask(client, secrets["all"], "a+0.5*b").status_code == 200
    models = client.get("/v1/models", headers={"authorization": f"Bearer {secrets['one']}"}).json()["data"]
    assert [m["id"] for m in models] == ["a"]


def test_what_stands_open(guard):
    client, secrets = guard
    assert client.get("/health").status_code == client.get("/ready").status_code == 200
    assert client.head("/health").status_code == client.head("/ready").status_code == 200
    assert client.get("/metrics").status_code == 401
    for who, status in (("one", 403), ("all", 200)):
        assert client.get("/metrics", headers={"authorization": f"Bearer {secrets[who]}"}).status_code == status


def test_how_often_and_how_much(guard):
    client, secrets = guard
    assert [ask(client, secrets["few"]).status_code for _ in range(4)] == [200, 200, 200, 429]
    late = ask(client, secrets["few"])
    assert int(late.headers["retry-after"]) > 1000 and "3/day" in late.json()["error"]["message"]
    assert late.json()["error"]["type"] == "RateLimitError"
    assert ask(client, secrets["less"]).status_code == 200  # takes more than there is
    assert ask(client, secrets["less"]).status_code == 429


def test_a_body_that_is_too_large():
    with shop.client(shop.host(), max_body=1000) as client:
        raw = json.dumps({"model": "a", "prompt": "w1 " * 500}).encode()
        got = client.post("/v1/completions", content=raw, headers={"content-type": "application/json"})
        assert got.status_code == 413 and "1,000 bytes" in got.json()["error"]["message"]
        pieces = (raw[i : i + 100] for i in range(0, len(raw), 100))
        got = client.post("/v1/completions", content=pieces, headers={"content-type": "application/json"})
        assert got.status_code == 413
        assert client.post("/v1/completions", json={"prompt": "w1", "max_tokens": 1}).status_code == 200
