"""Tools in /v1/responses: called, streamed by events, and answered."""

from __future__ import annotations

import json

import pytest

from commonweight.serve.http.calls import FORMS, Calls
from commonweight.serve.http.items import Items

from ..letters import letters
from . import shop
from .live import live
from .test_tools import TEMPLATE, TOOLS, host  # noqa: F401

pytest.importorskip("llguidance")
FLAT = [{"type": "function", **t["function"]} for t in TOOLS]
ASK = {"model": "a", "input": "hi", "tools": FLAT, "max_output_tokens": 150, "temperature": 0}
CALL = '<tool_call>{"name": "add", "arguments": {"x": 4}}</tool_call>'


@pytest.fixture(scope="module")
def client(host):  # noqa: F811
    with shop.client(host, words=letters(TEMPLATE)) as client:
        yield client


def grown(*texts, whole=True, calls=True):
    """(the output, the events) of an answer that came in these pieces."""
    items = Items(Calls(FORMS["hermes"], ["add"]) if calls else None)
    events = items.begun() + [e for t in texts for e in items.feed(t)] + items.end(whole)
    return items.output, events


def folded(events):
    """The output as a client puts it together."""
    out = []
    for e in events:
        kind = e["type"].removeprefix("response.")
        if kind == "output_item.added":
            assert e["output_index"] == len(out)
            out.append({**e["item"], "text": ""})
            continue
        at = out[e["output_index"]]
        assert e.get("item_id", at["id"]) == at["id"]
        if kind.endswith(".delta"):
            at["text"] += e["delta"]
        elif kind.endswith("arguments.done"):
            assert e["arguments"] == at["text"]
        elif kind == "output_text.done":
            assert e["text"] == at["text"]
        elif kind == "output_item.done":
            assert at["status"] == "in_progress"
            at.update(e["item"])
    for item in out:
        text = item.pop("text")
        assert text == (item["arguments"] if item["type"] == "function_call" else item["content"][0]["text"])
    return out


@pytest.mark.parametrize("size", [1, 3, 1000])
@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("Well.", ["message"]),
        (CALL, ["function_call"]),
        (f"Well. {CALL}\n{CALL}", ["message", "function_call", "function_call"]),
        (f"{CALL} And so. {CALL}", ["function_call", "message", "function_call"]),
        (f"\n{CALL}\n", ["function_call"]),
        ("", ["message"]),
        (" \n", ["message"]),
    ],
)
def test_items_in_their_order(text, kinds, size):
    output, events = grown(*(text[i : i + size] for i in range(0, len(text), size)))
    assert [i["type"] for i in output] == kinds and folded(events) == output
    assert all(i["status"] == "completed" for i in output) and len({i["id"] for i in output}) == len(kinds)
    for item in output:
        if item["type"] == "function_call":
            assert json.loads(item["arguments"]) == {"x": 4} and item["name"] == "add" and item["call_id"]


def test_what_is_cut_off_says_so():
    output, events = grown("Well. ", CALL[:45], whole=False)
    assert [i["status"] for i in output] == ["completed", "incomplete"] and folded(events) == output
    output, events = grown("Well. <tool_call>", calls=False)
    assert output[0]["content"][0]["text"] == "Well. <tool_call>" and folded(events) == output


def test_a_call_that_is_asked_for(client):
    say = {"type": "function", "name": "say"}
    for choice in ("required", say, {"type": "allowed_tools", "mode": "required", "tools": [say]}):
        more = {**ASK, "tool_choice": choice, "parallel_tool_calls": False}
        got = client.post("/v1/responses", json=more).json()
        (item,) = got["output"]
        assert item["type"] == "function_call" and item["name"] in ("add", "say") and json.loads(item["arguments"])
        assert got["status"] == "completed" and got["tool_choice"] == choice and got["tools"][1]["name"] == "say"
        assert not got["parallel_tool_calls"]
        events = shop.events(client.post("/v1/responses", json={**more, "stream": True}).text)
        assert [e["sequence_number"] for e in events] == list(range(len(events)))
        (again,) = folded(events[2:-1])
        assert again["arguments"] == item["arguments"] and events[-1]["response"]["output"] == [again]


def test_what_came_of_a_call_is_told(client):
    talk = [
        {"role": "user", "content": "hi"},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Well."}]},
        {"type": "function_call", "id": "fc_1", "call_id": "c1", "name": "add", "arguments": '{"x": 4}', "status": "x"},
        {"type": "function_call", "call_id": "c2", "name": "add", "arguments": '{"x": 5}'},
        {"type": "function_call_output", "call_id": "c1", "output": "5"},
        {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "6"}]},
    ]  # fmt: skip
    called = [
        {"id": f"c{i}", "type": "function", "function": {"name": "add", "arguments": f'{{"x": {i + 3}}}'}}
        for i in (1, 2)
    ]
    chat = [
        talk[0], {"role": "assistant", "content": "Well.", "tool_calls": called},
        *({"role": "tool", "tool_call_id": f"c{i}", "content": str(i + 4)} for i in (1, 2)),
    ]  # fmt: skip
    got = client.post("/v1/responses", json={**ASK, "input": talk, "max_output_tokens": 9}).json()
    body = {"model": "a", "messages": chat, "tools": TOOLS, "max_tokens": 9, "temperature": 0}
    want = client.post("/v1/chat/completions", json=body).json()
    assert got["usage"]["input_tokens"] == want["usage"]["prompt_tokens"]
    assert got["output"][0]["content"][0]["text"] == want["choices"][0]["message"]["content"]


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"tools": [], "tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "name": "none"}}, "tool_choice"),
        ({"tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": []}}, "tool_choice"),
        ({"tool_choice": "required", "text": {"format": {"type": "json_object"}}}, "tool_choice"),
        ({"input": [{"type": "reasoning", "summary": []}]}, "input"),
        ({"input": [{"type": ["message"]}]}, "input"),
        ({"input": [{"type": "function_call", "call_id": "c", "name": "add"}]}, "input"),
        ({"input": [{"type": "function_call_output", "call_id": "c", "output": "5", "extra": 1}]}, "input"),
        ({"max_tool_calls": 3}, "max_tool_calls"),
    ],
)
def test_what_is_not_served(client, more, param):
    got = client.post("/v1/responses", json={**ASK, **more})
    assert got.status_code == 400 and got.json()["error"]["param"] == param, got.text


def test_the_client_of_openai(host):  # noqa: F811
    openai = pytest.importorskip("openai")
    with live(host, words=letters(TEMPLATE)) as (address, _, _):
        with openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client:
            more = {**ASK, "tool_choice": "required", "parallel_tool_calls": False}
            (item,) = client.responses.create(**more).output
            assert item.type == "function_call" and json.loads(item.arguments)
            with client.responses.stream(**more) as stream:
                deltas = "".join(e.delta for e in stream if e.type == "response.function_call_arguments.delta")
                last = stream.get_final_response()
            assert last.output[0].arguments == deltas == item.arguments
            told = [item.model_dump(), {"type": "function_call_output", "call_id": item.call_id, "output": "5"}]
            client.responses.create(**{**ASK, "max_output_tokens": 5, "input": told})
