"""chat and generate: a conversation and rows of prompts, without a server; keys; what serve refuses at once."""

from __future__ import annotations

import io
import json
import socket
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import commonweight as cw
from tests.adapt import tiny
from tests.cli.test_cli import call


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """(model's folder, store with the tenants legal and tone)."""
    folder = tmp_path_factory.mktemp("shop")
    (folder / "m").mkdir()
    tiny.base(folder / "m", "llama")
    told = json.loads((config := folder / "m" / "tokenizer_config.json").read_text())
    config.write_text(json.dumps(told | {"chat_template": tiny.CHAT}))
    host, store = cw.Host(AutoModelForCausalLM.from_pretrained(folder / "m")), cw.Commons(folder / "store")
    for name, method, options in (("legal", "lora", {}), ("tone", "ia3", {}), ("sorts", "poly", {"tasks": "a,b"})):
        host.add(name, method, **options)
        with torch.no_grad():
            for p in host[name].parameters():
                p.add_(0.3 * torch.randn(p.shape))
        store.publish(host, name)
    return folder / "m", folder / "store"


@pytest.fixture
def given(monkeypatch):
    def say(text: str | bytes):
        raw = text.encode() if isinstance(text, str) else text
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(raw), encoding="utf-8"))

    return say


def test_another_tokenizer_reads_the_rows(capsys, shop, given, tmp_path):
    words = AutoTokenizer.from_pretrained(shop[0])
    words.chat_template = "{{ messages[0].content }} {{ messages[0].content }} {{ messages[0].content }}"
    words.add_tokens(["<tool>"])
    words.save_pretrained(tmp_path)
    rows = [{"messages": [{"role": "user", "content": "w1"}], "max_tokens": 1}, {"prompt": "w1 <tool>"}]
    given("".join(json.dumps(r) + "\n" for r in rows))
    code, out, _ = call(capsys, "generate", shop[0], "--tokenizer", tmp_path)
    found = [json.loads(x) for x in out.splitlines()]
    assert code == 2 and found[0]["prompt_tokens"] == 3
    assert "the tokenizer makes 44 of '<tool>', and the model has 44 entries" in found[1]["error"]
    given("")
    code, _, err = call(capsys, "generate", shop[0], "--tokenizer", tmp_path / "none")
    assert code and "none: no tokenizer can be loaded there" in err


def test_rows_in_rows_out(capsys, shop, given):
    rows = [
        {"tenant": "legal", "prompt": "w1 w2", "max_tokens": 4, "temperature": 0},
        {"id": 7, "messages": [{"role": "user", "content": "w1"}], "model": "tone", "max_new_tokens": 3},
        {"prompt": "w1 w2", "n": 2, "logprobs": 1, "max_tokens": 2, "tenant": "base"},
    ]
    given("".join(json.dumps(r) + "\n\n" for r in rows))
    code, out, err = call(capsys, "generate", shop[0], "--store", shop[1], "--dtype", "float32")
    found = [json.loads(x) for x in out.splitlines()]
    assert code == 0, err
    assert [r["row"] for r in found] == [0, 1, 2] and found[1]["id"] == 7
    assert [r.get("tenant") for r in found] == ["legal", "tone", "base"]
    assert found[0]["new_tokens"] == 4 and found[0]["finish_reason"] == "length" and found[0]["prompt_tokens"] == 2
    assert len(found[2]["choices"]) == 2 and len(found[2]["logprobs"]) == 2
    host = cw.Host(AutoModelForCausalLM.from_pretrained(shop[0], dtype=torch.float32))
    host.load_from(cw.Commons(shop[1]), "legal")
    with host.route("legal"), torch.no_grad():
        want = host.model.generate(torch.tensor([[5, 6]]), max_new_tokens=4, do_sample=False)[0, 2:]
    assert found[0]["text"].split() == [f"w{i - 4}" for i in want.tolist() if i > 3]


def test_a_wrong_row_is_an_answer_with_an_error(capsys, shop, given):
    rows = [
        b'{"prompt": "w1", "max_tokens": 1}', b"{", b"[]", b'{"tenant": "legal"}', b'{"prompt": "w1", "tempature": 1}',
        b'{"prompt": "w1", "temperature": "hot"}', b'{"prompt": "w1", "tenant": "nobody"}', b'{"prompt": "\\ud800"}',
        b'{"prompt": "w1", "stop": 5}', b'{"prompt": "w1", "logit_bias": [1]}', b"\xff\xfe", b'{"prompt": [4000]}',
        b'{"prompt": "w1", "model": "legal", "tenant": "tone"}', b'{"messages": "w1"}',
        b'{"prompt": "w1", "max_tokens": 1}',
    ]  # fmt: skip
    given(b"\n".join(rows))
    code, out, err = call(capsys, "generate", shop[0], "--store", shop[1], "--max-requests", "1")
    found = [json.loads(x) for x in out.splitlines()]
    assert code == 2 and "13 rows have an error" in err
    assert ["error" in r for r in found] == [False, *[True] * 13, False] and [r["row"] for r in found] == [*range(15)]
    for i, told in ((1, "not JSON"), (2, "a list"), (3, "no prompt"), (4, "did you mean 'temperature'"),
                    (5, "temperature is 'hot'"), (6, "nobody"), (11, "4000"), (12, "another name"),
                    (13, "messages is text")):  # fmt: skip
        assert told in found[i]["error"]


def test_a_conversation(capsys, shop, given):
    given("w1 w2\n/tenant tone\nw3\n/tenant none\n/base\n/new\nw1\n/quit\nw9\n")
    args = ["--store", shop[1], "--tenant", "legal", "--max-tokens", "4", "--temperature", "0", "--dtype", "float32"]
    code, out, err = call(capsys, "chat", shop[0], *args)
    assert code == 0 and len(out.splitlines()) == 3, (out, err)
    assert "unknown tenant 'none'; did you mean 'tone'?" in err
    given("w1 w2\n")
    again = call(capsys, "chat", shop[0], *args)[1]
    assert again.splitlines()[0] == out.splitlines()[0]
    given("")
    code, _, err = call(capsys, "chat", shop[0], "--store", shop[1], "--tenant", "leagl")
    assert code == 2 and "did you mean 'legal'?" in err
    given("w1 w2\n/tenant base\nw1\n/tenant legal+none\n")
    code, out, err = call(capsys, "chat", shop[0], *args[:2], "--tenant", "legal+0.5*tone", "--max-tokens", "4")
    assert code == 0 and len(out.splitlines()) == 2 and "unknown tenant 'none'" in err


def test_a_tenant_that_goes_by_tasks(capsys, shop, given):
    args = ["--store", shop[1], "--temperature", "0", "--max-tokens", "4"]
    rows = [{"prompt": "w1"}, {"prompt": "w1", "task": "a"}, {"tenant": "legal", "prompt": "w1"},
            {"tenant": "base", "prompt": "w1", "task": "a"}, {"tenant": "sorts", "prompt": "w1"}]  # fmt: skip
    given("".join(json.dumps(r) + "\n" for r in rows))
    code, out, _ = call(capsys, "generate", shop[0], *args, "--tenant", "sorts", "--task-name", "a")
    found = [json.loads(x) for x in out.splitlines()]
    assert code == 2 and found[0]["text"] == found[1]["text"] and "error" not in found[2]
    assert "the plain base knows no tasks" in found[3]["error"] and "say which, of a, b" in found[4]["error"]
    given("w1\n/tenant sorts\n/tenant legal\n/tenant sorts task=b\nw1\n")
    code, out, err = call(capsys, "chat", shop[0], *args, "--tenant", "sorts", "--task-name", "a")
    assert code == 0 and len(out.splitlines()) == 2 and err.count("say which, of a, b") == 1
    given("")
    assert "--task-name says which task" in call(capsys, "chat", shop[0], "--task-name", "a")[2]


def test_an_answer_has_what_room_there_is(capsys, shop, given):
    given("w1\n")
    code, out, err = call(capsys, "chat", shop[0], "--temperature", "0")
    assert code == 0 and out.strip() and "shorten" not in err


def test_keys(capsys, tmp_path):
    at = tmp_path / "keys.json"
    code, secret, _ = call(capsys, "keys", "add", "team", "--file", at, "--tenants", "legal, base", "--limit", "60/min")
    assert code == 0 and secret.startswith("cw-") and secret.strip() not in at.read_text()
    call(capsys, "keys", "add", "ops", "--file", at, "--admin")
    out = call(capsys, "keys", "list", "--file", at)[1]
    assert out.splitlines() == ["team: base, legal; 60/min requests", "ops: all tenants; admin"]
    assert call(capsys, "keys", "remove", "team", "--file", at)[0] == 0
    assert "team" not in call(capsys, "keys", "list", "--file", at)[1]
    for args in (["add", "x", "--tenants", ","], ["add", "../x"], ["remove", "none"], ["add", "ops"]):
        assert call(capsys, "keys", *args, "--file", at)[0] == 2


def test_a_port_that_is_taken_is_told_before_the_model_is_loaded(capsys, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        code, _, err = call(capsys, "serve", tmp_path, "--port", taken.getsockname()[1])
    assert code == 2 and "cannot listen on 127.0.0.1" in err and "choose another --port" in err


@pytest.mark.parametrize("said", ["0", "4-1", "1-", "many", "-2", "1-4-5"])
def test_how_many_replicas(capsys, tmp_path, said):
    (tmp_path / "config.json").write_text("{}")
    code, _, err = call(capsys, "serve", tmp_path, "--ray", f"--replicas={said}")
    assert code == 2 and f"--replicas {said}: wanted how many" in err


def test_replicas_want_ray_serve(capsys, tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setattr("commonweight.serve.http.logs.to_stderr", lambda: None)  # this process has more to do
    code, _, err = call(capsys, "serve", tmp_path, "--ray", "--port", "0")
    assert code == 2 and "pip install 'commonweight[ray]'" in err
