"""vLLM's tokenize and detokenize, OpenAI's responses."""

from __future__ import annotations

import json

import pytest

from commonweight.serve import Request

from ..served import alone
from . import shop


@pytest.fixture(scope="module")
def host():
    return shop.host()


@pytest.fixture(scope="module")
def client(host):
    with shop.client(host) as client:
        yield client


def test_tokens(client):
    got = client.post("/tokenize", json={"model": "a", "prompt": "w1 w2", "return_token_strs": True}).json()
    assert got == {"count": 2, "max_model_len": 256, "tokens": [8, 9], "token_strs": ["w1", "w2"]}
    got = client.post("/tokenize", json={"messages": [{"role": "user", "content": "w1"}]}).json()
    assert got["tokens"] == [4, 8, 5]
    assert client.post("/detokenize", json={"tokens": [8, 9]}).json()["prompt"] == shop.tokenizer().decode([8, 9])
    for path, body, told in (
        ("/tokenize", {}, "either a prompt or messages"),
        ("/tokenize", {"prompt": "w1", "model": "none"}, "does not exist"),
        ("/detokenize", {"tokens": [97]}, "97 is none"),
        ("/detokenize", {"tokens": [-1]}, "tokens.0"),
    ):
        got = client.post(path, json=body)
        assert got.status_code in (400, 404) and told in got.json()["error"]["message"]


def test_a_response(client, host):
    body = {"model": "a", "input": "w1 w2", "temperature": 0, "max_output_tokens": 5}
    got = client.post("/v1/responses", json=body).json()
    tokens = alone(host, Request([4, 8, 9, 5], "a", max_new_tokens=5))
    assert got["object"] == "response" and got["output"][0]["content"][0]["text"] == shop.tokenizer().decode(
        tokens, skip_special_tokens=True
    )
    assert got["usage"]["input_tokens"] == 4 and got["usage"]["total_tokens"] == 9
    assert got["status"] == "incomplete" and got["incomplete_details"] == {"reason": "max_output_tokens"}
    again = [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": "w1 w2"}]}]
    assert (
        client.post("/v1/responses", json={**body, "input": again}).json()["output"][0]["content"]
        == got["output"][0]["content"]
    )
    text = client.post("/v1/responses", json={**body, "stream": True}).text
    events = [json.loads(x.removeprefix("data: ")) for x in text.splitlines() if x.startswith("data: ")]
    assert [e["sequence_number"] for e in events] == list(range(len(events)))
    kinds = [x.removeprefix("event: ") for x in text.splitlines() if x.startswith("event: ")]
    assert (
        kinds == [e["type"] for e in events] and kinds[0] == "response.created" and kinds[-1] == "response.incomplete"
    )
    deltas = "".join(e["delta"] for e in events if e["type"] == "response.output_text.delta")
    assert deltas == got["output"][0]["content"][0]["text"] == events[-1]["response"]["output"][0]["content"][0]["text"]


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"text": {"verbosity": "high"}}, "text"),
        ({"input": []}, "input"),
        ({"input": [{"type": "function_call_output"}]}, "input"),
        ({"background": True}, "background"),
    ],
)
def test_responses_that_are_not_served(client, more, param):
    got = client.post("/v1/responses", json={"input": "w1", **more})
    assert got.status_code == 400 and got.json()["error"]["param"] == param
