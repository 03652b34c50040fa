"""Tools of a chat: told to the model, called when a call is asked for, found in what it writes, answered."""

from __future__ import annotations

import json

import pytest

from commonweight.core import CommonweightError
from commonweight.host import Host
from commonweight.serve.http import tools

from ..letters import letters
from ..served import add, make
from . import shop
from .live import live

pytest.importorskip("llguidance")
TEMPLATE = (
    "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}{{ m.role }}:{{ m.content }}"
    "{% for c in m.tool_calls or [] %}{{ c.function.name }}{{ c.function.arguments | tojson }}{% endfor %}"
    "{{ m.tool_call_id or '' }};{% endfor %}<tool_call>"
)
PLAIN = "{% for m in messages %}{{ m.role }}:{{ m.content }};{% endfor %}"


def tool(name, **properties):
    schema = {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
    return {"type": "function", "function": {"name": name, "description": name, "parameters": schema}}


TOOLS = [tool("add", x={"type": "integer", "maximum": 9, "minimum": 0}), tool("say", word={"enum": ["hi", "ho"]})]
ASK = {"messages": [{"role": "user", "content": "hi"}], "tools": TOOLS, "max_tokens": 150, "temperature": 0}


@pytest.fixture(scope="module")
def host():
    model = make()
    model.config.max_position_embeddings = 2048  # each letter is a token here
    found = Host(model)
    for name, method in (("a", "lora"), ("b", "ia3")):
        add(found, name, method)
    return found


@pytest.fixture(scope="module")
def client(host):
    with shop.client(host, words=letters(TEMPLATE)) as client:
        yield client


def chat(client, **more):
    return client.post("/v1/chat/completions", json={"model": "a", **ASK, **more})


def sound(call):
    name, arguments = call["function"]["name"], json.loads(call["function"]["arguments"])
    assert call["type"] == "function" and call["id"]
    return (name == "add" and arguments["x"] in range(10)) or (name == "say" and arguments["word"] in ("hi", "ho"))


@pytest.mark.parametrize("parser", ["hermes", "llama3", "mistral"])
@pytest.mark.parametrize("template", [TEMPLATE, PLAIN])
def test_a_call_that_is_asked_for(host, parser, template):
    with shop.client(host, words=letters(template), tool_parser=parser) as client:
        for choice, names in (
            ("required", {"add", "say"}),
            ({"type": "function", "function": {"name": "say"}}, {"say"}),
        ):
            more = {"tool_choice": choice, "parallel_tool_calls": False}
            got = chat(client, **more).json()["choices"][0]
            (call,) = got["message"]["tool_calls"]
            assert got["finish_reason"] == "tool_calls" and got["message"]["content"] is None
            assert sound(call) and call["function"]["name"] in names
            _, *chunks, last, done = shop.events(chat(client, **more, stream=True).text)
            assert done == "[DONE]" and last["choices"][0]["finish_reason"] == "tool_calls"
            deltas = [d for c in [*chunks, last] for d in c["choices"][0]["delta"].get("tool_calls", [])]
            assert not any("content" in c["choices"][0]["delta"] for c in chunks)
            assert deltas[0]["function"]["name"] == call["function"]["name"] and deltas[0]["id"]
            assert "".join(d["function"]["arguments"] for d in deltas) == call["function"]["arguments"]


def test_a_call_that_the_model_makes_by_itself(client):
    wrote = '<tool_call>{"name": "add", "arguments": {"x": 4}}</tool_call>'
    got = chat(client, guided_choice=[f"Well. {wrote}"]).json()["choices"][0]
    assert got["message"]["content"] == "Well." and got["finish_reason"] == "tool_calls"
    assert [c["function"] for c in got["message"]["tool_calls"]] == [{"name": "add", "arguments": '{"x": 4}'}]
    got = chat(client, guided_choice=[f"{wrote}{wrote}"]).json()["choices"][0]
    assert len(got["message"]["tool_calls"]) == 2
    got = chat(client, guided_choice=[f"{wrote}{wrote}"], parallel_tool_calls=False).json()["choices"][0]
    assert len(got["message"]["tool_calls"]) == 1
    got = chat(client, guided_choice=[wrote], tool_choice="none").json()["choices"][0]
    assert got["message"]["content"] == wrote and "tool_calls" not in got["message"]
    got = chat(client, guided_choice=["No call."]).json()["choices"][0]
    assert got["message"]["content"] == "No call." and got["finish_reason"] == "stop"


CALLED = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"x": 4}'}}
TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "assistant", "content": None, "tool_calls": [CALLED]},
    {"role": "tool", "tool_call_id": "c1", "content": "5"},
]


def prompted(monkeypatch, client, **more):
    from commonweight.serve import prompts

    seen, was = [], prompts._chat
    monkeypatch.setattr(prompts, "_chat", lambda said, request, words: seen.append((said, request.tools)) or [5])
    assert chat(client, **{"max_tokens": 1, **more}).status_code == 200
    monkeypatch.setattr(prompts, "_chat", was)
    return seen[0]


def test_what_the_template_is_given(host, client, monkeypatch):
    said, told = prompted(monkeypatch, client, messages=TALK)
    assert told == TOOLS and said[0] == TALK[0]
    assert said[1]["tool_calls"][0]["function"] == {"name": "add", "arguments": {"x": 4}} and said[1]["content"] == ""
    assert said[2] == {"role": "tool", "tool_call_id": "c1", "content": "5"}
    assert prompted(monkeypatch, client, tool_choice="none")[1] is None
    with shop.client(host, words=letters(PLAIN)) as plain:
        said, told = prompted(monkeypatch, plain, messages=TALK)
    assert told is None and said[0]["content"].startswith("Be brief.\n\nYou may call functions")
    assert '"name": "say"' in said[0]["content"] and "<tool_call>" in said[0]["content"]
    assert said[1]["content"] == '<tool_call>\n{"name": "add", "arguments": {"x": 4}}\n</tool_call>'
    assert said[2] == {"role": "user", "content": "<tool_response>\n5\n</tool_response>"}


def allowed(mode, *names):
    tools = [{"type": "function", "function": {"name": n}} for n in names]
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}}


def test_tools_that_are_allowed(host, client, monkeypatch):
    got = chat(client, tool_choice=allowed("required", "say"), parallel_tool_calls=False).json()["choices"][0]
    assert [c["function"]["name"] for c in got["message"]["tool_calls"]] == ["say"]
    wrote = '<tool_call>{"name": "%s", "arguments": {"x": 4}}</tool_call>'
    got = chat(client, tool_choice=allowed("auto", "add"), guided_choice=[wrote % "add"]).json()["choices"][0]
    assert [c["function"]["name"] for c in got["message"]["tool_calls"]] == ["add"]
    got = chat(client, tool_choice=allowed("auto", "say"), guided_choice=[wrote % "add"]).json()["choices"][0]
    assert "tool_calls" not in got["message"] and got["message"]["content"] == wrote % "add"
    assert prompted(monkeypatch, client, tool_choice=allowed("auto", "say"))[1] == TOOLS[1:]
    with shop.client(host, words=letters(PLAIN)) as plain:
        said, _ = prompted(monkeypatch, plain, tool_choice=allowed("auto", "add"))
    assert '"name": "add"' in said[0]["content"] and '"name": "say"' not in said[0]["content"]


def test_the_tokens_of_messages_with_tools(client):
    got = client.post("/tokenize", json={"model": "a", "messages": ASK["messages"], "tools": TOOLS}).json()
    want = chat(client, max_tokens=1).json()["usage"]["prompt_tokens"]
    assert got["count"] == want > client.post("/tokenize", json={"messages": ASK["messages"]}).json()["count"]
    for body, told in (
        ({"prompt": "hi", "tools": TOOLS}, "only beside messages"),
        ({"messages": ASK["messages"], "tools": [tool("f"), tool("f")]}, "two tools"),
    ):
        assert told in client.post("/tokenize", json=body).json()["error"]["message"]


WRONG = {
    "allowed nobody": ({"tool_choice": allowed("auto")}, "tool_choice", "wants a mode"),
    "allowed never": ({"tool_choice": allowed("never", "add")}, "tool_choice", "wants a mode"),
    "allowed other": ({"tool_choice": allowed("auto", "sub")}, "tool_choice", "no tool 'sub'"),
    "allowed nothing": ({"tool_choice": {"type": "allowed_tools", "allowed_tools": 3}}, "tool_choice", "wants a mode"),
    "allowed text": (
        {"tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": ["add", None]}}},
        "tool_choice", "no tool None",
    ),
    "type": ({"tools": [{"type": "retrieval"}]}, "tools", "of type function"),
    "name": ({"tools": [tool("a b")]}, "tools", "'a b'"),
    "twice": ({"tools": [tool("f"), tool("f")]}, "tools", "two tools 'f'"),
    "schema": ({"tools": [{"type": "function", "function": {"name": "f", "parameters": []}}]}, "tools", "JSON schema"),
    "choice": ({"tool_choice": "maybe"}, "tool_choice", "wanted none, auto, required"),
    "other": ({"tool_choice": {"type": "function", "function": {"name": "g"}}}, "tool_choice", "no tool 'g'"),
    "none": ({"tools": [], "tool_choice": "required"}, "tool_choice", "only allowed when tools"),
    "both": (
        {"tool_choice": "required", "response_format": {"type": "json_object"}}, "tool_choice", "leave one out",
    ),
    "call": ({"messages": [{"role": "assistant", "tool_calls": [{"id": "1"}]}]}, "messages", "tool_calls.0"),
    "many": ({"tools": [tool(f"f{i}") for i in range(129)]}, "tools", "at most 128"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_told(client, case):
    more, param, told = WRONG[case]
    error = chat(client, **more).json()["error"]
    assert (error["code"], error["param"]) == (400, param) and told in error["message"], error


def test_the_form_by_the_template():
    for template, form in (
        ("{{ '<tool_call>' }}", "hermes"), ("[TOOL_CALLS]", "mistral"), ("<|python_tag|>", "llama3"), (PLAIN, "hermes"),
    ):  # fmt: skip
        assert tools.named("auto", letters(template)) == form
    assert tools.named("mistral", letters(PLAIN)) == "mistral" and tools.named("auto", None) == "hermes"
    with pytest.raises(CommonweightError, match="there are auto, hermes, llama3, mistral"):
        tools.named("xml", None)


def test_openais_client(host):
    openai = pytest.importorskip("openai")
    with (
        live(host, words=letters(TEMPLATE)) as (address, _, _),
        openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as found,
    ):
        asked = {"model": "b", **ASK, "tool_choice": "required", "parallel_tool_calls": False}
        whole = found.chat.completions.create(**asked).choices[0]
        assert whole.finish_reason == "tool_calls" and sound(whole.message.tool_calls[0].model_dump())
        with found.chat.completions.stream(**asked) as stream:
            events = list(stream)
        done = [e for e in events if e.type == "tool_calls.function.arguments.done"]
        assert done[0].arguments == whole.message.tool_calls[0].function.arguments
        talk = [*ASK["messages"], whole.message, {"role": "tool", "tool_call_id": "x", "content": "done"}]
        assert found.chat.completions.create(**{**asked, "messages": talk, "tool_choice": "auto"}).choices
