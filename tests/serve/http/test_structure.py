"""Structured output over HTTP: OpenAI's response_format, vLLM's bodies, and what is wrong with one."""

from __future__ import annotations

import json

import pytest

from ..letters import letters
from ..test_grammar import KEPT, SCHEMA
from . import shop

pytest.importorskip("llguidance")
CHAT = "{% if tools %}{% endif %}{% for m in messages %}{{ m.content }}{% endfor %}"  # knows tools
FORMAT = {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA, "strict": True}}
ASK = {"model": "a", "max_tokens": 80, "temperature": 0}


@pytest.fixture(scope="module")
def client():
    with shop.client(shop.host(), words=letters(CHAT)) as client:
        yield client


def chat(client, **more):
    return client.post("/v1/chat/completions", json={**ASK, "messages": [{"role": "user", "content": "hi"}], **more})


def complete(client, **more):
    return client.post("/v1/completions", json={**ASK, "prompt": "hi", **more})


def test_a_schema(client):
    got = chat(client, response_format=FORMAT).json()["choices"][0]
    assert KEPT["json"][1](got["message"]["content"]) and got["finish_reason"] == "stop"
    assert complete(client, response_format=FORMAT, stream=True).text.endswith("data: [DONE]\n\n")
    chunks = shop.events(chat(client, response_format=FORMAT, stream=True).text)[:-1]
    said = "".join(c["choices"][0]["delta"].get("content", "") for c in chunks)
    assert said == got["message"]["content"]
    text = {"format": {"type": "json_schema", "name": "person", "schema": SCHEMA}}
    body = {"model": "a", "input": "hi", "text": text, "temperature": 0, "max_output_tokens": 80}
    told = client.post("/v1/responses", json=body).json()
    assert told["output"][0]["content"][0]["text"] == said and told["text"] == text


def test_any_object_and_plain_text(client):
    got = chat(client, response_format={"type": "json_object"}).json()
    content = got["choices"][0]["message"]["content"]
    assert content.startswith("{") and (
        got["choices"][0]["finish_reason"] == "length" or json.loads(content) is not None
    )
    assert chat(client, response_format={"type": "text"}).status_code == 200


@pytest.mark.parametrize("kind", KEPT)
def test_vllms_bodies(client, kind):
    what, kept = KEPT[kind]
    for more in ({"structured_outputs": {kind: what}}, {f"guided_{kind}": what}):
        for asked in (chat, complete):
            got = asked(client, **more).json()["choices"][0]
            assert kept(got.get("text") or got["message"]["content"])


WRONG = {
    "both": ({"guided_regex": "a", "response_format": {"type": "json_object"}}, "guided_regex", "come together"),
    "type": ({"response_format": {"type": "xml"}}, "response_format", "wanted text, json_object or json_schema"),
    "schema": ({"response_format": {"type": "json_schema"}}, "response_format", "wanted a JSON schema"),
    "word": ({"guided_json": {"not": {}}}, "guided_json", "cannot be kept to"),
    "backend": ({"guided_regex": "a", "guided_decoding_backend": "outlines"}, "guided_decoding_backend", "guidance"),
    "tag": ({"structured_outputs": {"structural_tag": "{}"}}, "structured_outputs", "wanted exactly one of"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_told(client, case):
    more, param, told = WRONG[case]
    error = complete(client, **more).json()["error"]
    assert (error["code"], error["param"]) == (400, param) and told in error["message"], error


def test_what_is_wrong_is_told_by_its_field(client):
    bad = {"not": {}}
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"properties": {"a": {"type": "odd"}}}}}]
    formed = {"type": "json_schema", "name": "x", "schema": bad}
    for path, body, param in (
        ("chat/completions", {"response_format": {"type": "json_schema", "json_schema": formed}}, "response_format"),
        ("chat/completions", {"tools": tools, "tool_choice": "required"}, "tools"),
        ("responses", {"text": {"format": formed}}, "text"),
        ("responses", {"tools": [{**tools[0]["function"], "type": "function"}], "tool_choice": "required"}, "tools"),
    ):
        asked = {"input": "hi"} if path == "responses" else {"messages": [{"role": "user", "content": "hi"}]}
        error = client.post(f"/v1/{path}", json={"model": "a", **asked, **body}).json()["error"]
        assert (error["code"], error["param"]) == (400, param), error
