"""Completions, chats and models by OpenAI's interface: each answer is its tenant's, errors are in its form."""

from __future__ import annotations

import json

import pytest
import torch

from commonweight.serve import Request

from .. import served
from ..served import alone, ask, prompt
from . import shop


@pytest.fixture(scope="module")
def host():
    return shop.host()


@pytest.fixture(scope="module")
def client(host):
    with shop.client(host) as client:
        yield client


GREEDY = {"max_tokens": 6, "temperature": 0, "ignore_eos": True}


def post(client, path="/v1/completions", **body):
    return client.post(path, json={"prompt": prompt(1), **GREEDY, **body} if path == "/v1/completions" else body)


def words(tokens):
    return shop.tokenizer().decode(tokens, skip_special_tokens=True)


@pytest.mark.parametrize("name", ["base", "org/tiny", "tiny", "a", "b"])
def test_model_names_the_tenant(client, host, name):
    got = post(client, model=name).json()
    tokens = alone(host, ask(name if name in "ab" else None, 1))
    assert got["choices"][0]["text"] == words(tokens) and got["model"] == name
    assert got["object"] == "text_completion" and got["id"].startswith("cmpl-")
    assert got["usage"]["prompt_tokens"] == len(prompt(1)) and got["usage"]["completion_tokens"] == 6
    assert got["choices"][0]["finish_reason"] == "length"


def test_several_prompts_and_answers(client, host):
    got = post(client, model="a", prompt=[prompt(1), prompt(2)], n=2).json()["choices"]
    want = [words(alone(host, ask("a", i))) for i in (1, 1, 2, 2)]
    assert [c["text"] for c in got] == want and [c["index"] for c in got] == [0, 1, 2, 3]


@pytest.mark.parametrize("name", [None, "a", "b"])
def test_a_prompt_is_given_back_with_its_log_probabilities(client, host, name):
    asked = {"model": name or "base", "prompt": [prompt(1), prompt(2)], "echo": True, "logprobs": 2, "max_tokens": 2}
    choices = post(client, **asked).json()["choices"]
    ids = prompt(1)
    with torch.no_grad(), host.route(name):
        logs = torch.log_softmax(host.model(input_ids=torch.tensor([ids])).logits[0], -1)
    told = choices[0]["logprobs"]
    want = [float(logs[i, t]) for i, t in enumerate(ids[1:])]
    assert told["token_logprobs"][0] is None and told["top_logprobs"][0] is None
    assert told["token_logprobs"][1 : len(ids)] == pytest.approx(want, abs=1e-4)
    best = [max(top.values()) for top in told["top_logprobs"][1 : len(ids)]]
    assert best == pytest.approx(logs[: len(ids) - 1].max(1).values.tolist(), abs=1e-4)
    assert len(told["tokens"]) == len(told["text_offset"]) == len(ids) + 2
    assert told["text_offset"] == [sum(map(len, told["tokens"][:i])) for i in range(len(ids) + 2)]
    assert choices[1]["text"].startswith(words(prompt(2)))
    events = shop.events(post(client, **asked, stream=True).text)[:-1]
    for i, choice in enumerate(choices):
        mine = [c["choices"][0] for c in events if c["choices"][0]["index"] == i]
        assert "".join(c["text"] for c in mine) == choice["text"]
        for field in ("tokens", "text_offset"):
            assert [x for c in mine for x in c["logprobs"][field]] == choice["logprobs"][field]
    plain = post(client, **{**asked, "logprobs": None}).json()["choices"]
    assert [c["text"] for c in plain] == [c["text"] for c in choices] and plain[0]["logprobs"] is None


def test_a_prompt_alone(client):
    asked = {"model": "a", "prompt": [prompt(1), prompt(2)], "echo": True, "logprobs": 1, "n": 2}
    longer = post(client, **asked, max_tokens=1).json()
    got = post(client, **asked, max_tokens=0).json()
    assert got["usage"]["completion_tokens"] == 0 and got["usage"]["prompt_tokens"] == longer["usage"]["prompt_tokens"]
    for mine, other in zip(got["choices"], longer["choices"], strict=True):
        assert mine["finish_reason"] == "length" and mine["index"] == other["index"]
        assert mine["text"] and other["text"].startswith(mine["text"])
        for name, values in mine["logprobs"].items():
            assert values == other["logprobs"][name][:-1], name
    *chunks, done = shop.events(post(client, **asked, max_tokens=0, stream=True).text)
    assert done == "[DONE]"
    for choice in got["choices"]:
        mine = [c["choices"][0] for c in chunks if c["choices"][0]["index"] == choice["index"]]
        assert "".join(c["text"] for c in mine) == choice["text"] and mine[-1]["finish_reason"] == "length"


def test_fields_that_say_what_happens_anyway(client):
    from commonweight.serve.http.bodies import NEUTRAL, ChatBody, CompletionBody

    for path, body, start in (
        ("/v1/completions", CompletionBody, {"prompt": "w1"}),
        ("/v1/chat/completions", ChatBody, {"messages": [{"role": "user", "content": "w1"}]}),
    ):
        served = {*start, "tool_choice", "top_logprobs", "add_special_tokens"}
        names = [n for n in NEUTRAL if n in body.model_fields and n not in served]
        said = {n: NEUTRAL[n][0] if NEUTRAL[n] else None for n in names} | {"user": "me"}
        got = client.post(path, json={"model": "a", "max_tokens": 1, **start, **said})
        assert got.status_code == 200, got.text
        for name in set(names) - {"echo", "tools", "include_reasoning"}:
            odd = client.post(path, json={"model": "a", "max_tokens": 1, **start, name: "odd"})
            assert odd.status_code == 400 and odd.json()["error"]["param"] == name, (name, odd.text)


def test_objects_that_say_nothing(client):
    said = {
        "messages": [{"role": "user", "content": "w1"}],
        "chat_template_kwargs": {"thinking": None},
        "max_tokens": 1,
    }
    assert client.post("/v1/chat/completions", json=said).status_code == 200
    asked = {"input": "w1", "reasoning": {"effort": None, "summary": None}, "max_output_tokens": 1}
    assert client.post("/v1/responses", json=asked).status_code == 200
    assert client.post("/v1/responses", json={**asked, "reasoning": {"effort": "low"}}).status_code == 400


def test_a_prefix_is_found_within_one_salt(client):
    asked = {"prompt": [7, 8, 9] * 8, "max_tokens": 3, "model": "b"}
    used = [post(client, **asked, cache_salt=s).json()["usage"] for s in ("x", "y", "x", None)]
    assert [u["prompt_tokens_details"]["cached_tokens"] for u in used] == [0, 0, 16, 0]
    assert post(client, **asked, cache_salt="").json()["error"]["param"] == "cache_salt"


def test_a_prompt_that_has_no_log_probabilities(client, host, monkeypatch):
    asked = {"echo": True, "logprobs": 1, "max_tokens": 1}
    for name in ("a+0.5*b", "0.5*a"):
        assert "one tenant" in post(client, model=name, **asked).json()["error"]["message"]
    assert post(client, model="1*a", **asked).status_code == 200
    monkeypatch.setattr("commonweight.serve.scoring.MOST", 4 * 97 * 5)
    got = post(client, model="a", **asked)
    assert got.status_code == 400 and "of 5 at most" in got.json()["error"]["message"]
    monkeypatch.undo()
    served.add(host, "ill", "lora")
    with torch.no_grad():
        for p in host["ill"].parameters():
            p.fill_(3e38)
    try:
        assert post(client, model="ill", **asked).status_code == 500
    finally:
        host.remove("ill")


def test_a_stream_says_the_same(client):
    whole = post(client, model="a", logprobs=1).json()
    text = post(client, model="a", logprobs=1, stream=True, stream_options={"include_usage": True}).text
    *chunks, last, done = shop.events(text)
    assert done == "[DONE]" and last["choices"] == [] and last["usage"]["completion_tokens"] == 6
    assert "".join(c["choices"][0]["text"] for c in chunks) == whole["choices"][0]["text"]
    assert [t for c in chunks for t in c["choices"][0]["logprobs"]["tokens"]] == whole["choices"][0]["logprobs"][
        "tokens"
    ]
    offsets = [o for c in chunks for o in c["choices"][0]["logprobs"]["text_offset"]]
    assert offsets == whole["choices"][0]["logprobs"]["text_offset"]
    assert chunks[-1]["choices"][0]["finish_reason"] == "length" and len({c["id"] for c in chunks}) == 1


def test_chats(client, host):
    body = {"model": "a", "messages": [{"role": "user", "content": "w1 w2"}], **GREEDY}
    got = client.post("/v1/chat/completions", json={**body, "logprobs": True, "top_logprobs": 2}).json()
    tokens = alone(host, Request([4, 8, 9, 5], "a", max_new_tokens=6))
    choice = got["choices"][0]
    assert choice["message"] == {"role": "assistant", "content": words(tokens), "refusal": None}
    logs = choice["logprobs"]["content"]
    assert len(logs) == 6 and len(logs[0]["top_logprobs"]) == 2
    assert logs[0]["bytes"] == list(logs[0]["token"].encode()) and logs[0]["logprob"] <= 0
    parts = [{"role": "user", "content": [{"type": "text", "text": "w1"}, {"type": "text", "text": "w2"}]}]
    again = client.post("/v1/chat/completions", json={**body, "messages": parts, "max_completion_tokens": 6})
    assert again.json()["choices"][0]["message"]["content"] == choice["message"]["content"]
    first, *rest, done = shop.events(client.post("/v1/chat/completions", json={**body, "stream": True}).text)
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""} and done == "[DONE]"
    assert first["object"] == "chat.completion.chunk"
    assert "".join(c["choices"][0]["delta"].get("content", "") for c in rest) == choice["message"]["content"]


def test_the_same_seed_draws_the_same(client):
    body = {"model": "b", "temperature": 1.5, "seed": -3, "n": 3, "top_k": 40, "min_p": 0.001, "top_p": 0.99}
    one, two = ([c["text"] for c in post(client, **body).json()["choices"]] for _ in range(2))
    assert one == two and len(set(one)) == 3


def test_what_shapes_an_answer(client):
    plain = post(client, model="a", logprobs=0).json()["choices"][0]
    first = plain["logprobs"]["tokens"][0]
    token = shop.tokenizer().convert_tokens_to_ids(first)
    assert not post(client, model="a", logit_bias={str(token): -100}).json()["choices"][0]["text"].startswith(first)
    stopped = post(client, model="a", stop=[first]).json()["choices"][0]
    assert stopped["text"] == "" and stopped["finish_reason"] == "stop" and stopped["stop_reason"] == first
    ended = post(client, model="a", stop_token_ids=[token]).json()
    assert ended["usage"]["completion_tokens"] == 1 and ended["choices"][0]["finish_reason"] == "stop"
    assert ended["choices"][0]["stop_reason"] == token
    *_, last, _ = shop.events(post(client, model="a", stop=["none", first], stream=True).text)
    assert last["choices"][0]["stop_reason"] == first
    late = post(client, model="a", stop_token_ids=[token], min_tokens=3).json()
    assert late["usage"]["completion_tokens"] > 1 and not late["choices"][0]["text"].startswith(first)
    few = post(client, model="a", min_tokens=7)
    assert few.status_code == 400 and few.json()["error"]["param"] == "min_tokens"
    assert len(post(client, model="a", max_tokens=None).json()["choices"][0]["text"]) > 0


def test_models(client):
    got = client.get("/v1/models").json()
    assert got["object"] == "list" and [m["id"] for m in got["data"]] == ["base", "org/tiny", "a", "b"]
    assert got["data"][2]["parent"] == "org/tiny" and got["data"][0]["parent"] is None
    assert client.get("/v1/models/org/tiny").json()["id"] == "org/tiny"
    assert client.get("/v1/models/none").status_code == 404


WRONG = {
    "model": ({"model": "nobody"}, 404, "NotFoundError", "model", "The model `nobody` does not exist."),
    "name": ({"model": "../a"}, 404, "NotFoundError", "model", "does not exist"),
    "long": ({"model": "n" * 2000}, 404, "NotFoundError", "model", "no model has a name of 2,000 characters"),
    "temperature": ({"temperature": -1}, 400, "BadRequestError", "temperature", "greater than or equal to 0"),
    "text": ({"temperature": "hot"}, 400, "BadRequestError", "temperature", "valid number"),
    "tokens": ({"max_tokens": 0}, 400, "BadRequestError", "max_tokens", "wanted 1 or more"),
    "less": ({"max_tokens": -1, "echo": True}, 400, "BadRequestError", "max_tokens", "greater than or equal to 0"),
    "room": ({"max_tokens": 100_000}, 400, "BadRequestError", None, "shorten the prompt or max_tokens"),
    "unknown": ({"tempature": 1}, 400, "BadRequestError", "tempature", "no such field"),
    "best_of": ({"best_of": 4}, 400, "BadRequestError", "best_of", "drawn once"),
    "token": ({"prompt": [5, 4_000]}, 400, "BadRequestError", "prompt", "4000"),
    "empty": ({"prompt": []}, 400, "BadRequestError", "prompt", "empty"),
    "bias": ({"logit_bias": {"x": 1}}, 400, "BadRequestError", "logit_bias", "no token"),
    "beyond": ({"logit_bias": {"97": 1}}, 400, "BadRequestError", "logit_bias", "from 0 to 96"),
    "stop": ({"stop": [""]}, 400, "BadRequestError", "stop", "none of them empty"),
    "options": ({"stream_options": {"include_usage": True}}, 400, "BadRequestError", "stream_options", "`stream=True`"),
    "many": ({"prompt": [[5]] * 1025}, 400, "BadRequestError", "prompt", "at most 1024"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_told(client, case):
    body, status, kind, param, message = WRONG[case]
    got = post(client, **{"model": "a", **body})
    error = got.json()["error"]
    assert (got.status_code, error["code"], error["type"], error["param"]) == (status, status, kind, param), error
    assert message in error["message"] and got.headers["x-request-id"]


def test_chats_that_are_none(client):
    for messages, told in (
        ([], "messages"),
        ([{"content": "w1"}], "messages.0.role"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "image_url"),
        ([{"role": "user", "content": "\ud800"}], "surrogate"),
        ([{"role": "user", "content": "", "tool_calls": [{"id": "1"}]}], "tool_calls"),
    ):
        raw = json.dumps({"model": "a", "messages": messages})
        got = client.post("/v1/chat/completions", content=raw, headers={"content-type": "application/json"})
        assert got.status_code == 400 and told in got.json()["error"]["message"], got.text
    got = client.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": "w1"}], "top_logprobs": 2})
    assert got.json()["error"]["param"] == "top_logprobs"


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"null", b'{"prompt": NaN}', b"[" * 100_000, b"\xff\xfe"])
def test_bodies_that_are_none(client, raw):
    got = client.post("/v1/completions", content=raw, headers={"content-type": "application/json"})
    assert got.status_code == 400 and got.json()["error"]["type"] == "BadRequestError"


def test_paths_and_methods(client):
    assert client.get("/v1/nothing").json()["error"]["code"] == 404
    assert client.get("/v1/completions").json()["error"]["code"] == 405
    assert client.get("/openapi.json").json()["info"]["title"] == "commonweight"
