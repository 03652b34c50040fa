"""Calls in an answer's text: whole, and cut anywhere, the same calls and the same content."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from commonweight.serve.http.calls import FORMS, Calls
from tests.drawn import drawn

ONE = '{"name": "f", "arguments": {"x": "a}\\"{", "y": [1, {"z": null}]}}'
TWO = '{"arguments": {"q": 2}, "name": "g"}'
F, G = {"x": 'a}"{', "y": [1, {"z": None}]}, {"q": 2}
LLAMA = ONE.replace("arguments", "parameters")
TEXTS = {
    "one": ("hermes", f"<tool_call>\n{ONE}\n</tool_call>", "", [("f", F)]),
    "content": ("hermes", f"I look.\n\n<tool_call>\n{ONE}\n</tool_call>\n", "I look.", [("f", F)]),
    "two": ("hermes", f"<tool_call>{ONE}</tool_call>\n<tool_call>{TWO}</tool_call>", "", [("f", F), ("g", G)]),
    "list": ("hermes", f"<tool_call>[{ONE}, {TWO}]</tool_call>", "", [("f", F), ("g", G)]),
    "after": ("hermes", f"<tool_call>{TWO}</tool_call>\nDone.", "\nDone.", [("g", G)]),
    "no call": ("hermes", "Plain, with 2 < 3 and <tool>.", "Plain, with 2 < 3 and <tool>.", []),
    "no object": ("hermes", "a <tool_call>nothing</tool_call> b", "a <tool_call>nothing</tool_call> b", []),
    "no name": ("hermes", '<tool_call>{"x": 1}</tool_call>', '<tool_call>{"x": 1}</tool_call>', []),
    "no arguments": ("hermes", '<tool_call>{"name": "f"}</tool_call>', "", [("f", {})]),
    "text": ("hermes", '<tool_call>{"name": "f", "arguments": "{\\"q\\": 2}"}</tool_call>', "", [("f", G)]),
    "no end": ("hermes", f"<tool_call>{ONE}", "", [("f", F)]),
    "mark alone": ("hermes", "x <tool_ca", "x <tool_ca", []),
    "end cut": ("hermes", f"<tool_call>{ONE}</tool_ca", "", [("f", F)]),
    "next one cut": ("hermes", f"<tool_call>{ONE}</tool_call>\n<tool_c", "", [("f", F)]),
    "name cut": ("hermes", f'<tool_call>{ONE}</tool_call><tool_call>{{"na', "", [("f", F)]),
    "content, cut": ("hermes", f"I look. <tool_call>{ONE}</tool_call>\n<tool_c", "I look.", [("f", F)]),
    "after, cut": ("hermes", f"<tool_call>{TWO}</tool_call>\n2 <", "\n2 <", [("g", G)]),
    "llama": ("llama3", LLAMA, "", [("f", F)]),
    "llama, tag": ("llama3", f"<|python_tag|>{LLAMA}", "", [("f", F)]),
    "llama, two": ("llama3", f"{LLAMA}; {TWO}", "", [("f", F), ("g", G)]),
    "llama, text": ("llama3", 'Use {"name": "f"}.', 'Use {"name": "f"}.', []),
    "llama, a person": ("llama3", '{"name": "Ada", "age": 36}', '{"name": "Ada", "age": 36}', []),
    "mistral": ("mistral", f"[TOOL_CALLS] [{ONE}, {TWO}]", "", [("f", F), ("g", G)]),
    "mistral, names": ("mistral", '[TOOL_CALLS]f{"q": 2}[TOOL_CALLS]g[ARGS]{"q": 2}', "", [("f", G), ("g", G)]),
    "mistral, cut": ("mistral", f"[TOOL_CALLS] [{ONE}]\n[TOOL_CA", "", [("f", F)]),
    "mistral, id": ("mistral", '[TOOL_CALLS]g[CALL_ID]abc123xyz[ARGS]{"q": 2}', "", [("g", G)]),
    "mistral, text": ("mistral", "Hello [you].", "Hello [you].", []),
}


def parsed(form, pieces, most=None):
    calls = Calls(FORMS[form], {"f", "g"}, most)
    got = [*map(calls.feed, pieces), calls.end()]
    whole: dict[int, list] = {}
    for _, deltas in got:
        for d in deltas:
            if "id" in d:
                assert d["type"] == "function" and len(whole) == d["index"]
                whole[d["index"]] = [d["function"]["name"], ""]
            whole[d["index"]][1] += d["function"]["arguments"]
    assert [[c.name, c.arguments] for c in calls.found] == list(whole.values())
    return "".join(c for c, _ in got), [(n, json.loads(a)) for n, a in whole.values()]


@pytest.mark.parametrize("case", TEXTS)
@drawn(100)
@given(cuts=st.sets(st.integers(1, 120)))
def test_calls(case, cuts):
    form, text, content, calls = TEXTS[case]
    ends = [c for c in sorted(cuts) if c < len(text)]
    pieces = [text[a:b] for a, b in zip([0, *ends], [*ends, len(text)])]
    assert parsed(form, pieces) == (content, calls)


def test_letter_by_letter_the_arguments_come_early():
    calls = Calls(FORMS["hermes"], {"f"})
    came = [calls.feed(c)[1] for c in '<tool_call>{"name": "f", "arguments": {"x": 1']
    assert "".join(d["function"]["arguments"] for ds in came for d in ds) == '{"x": 1'
    assert calls.end() == ("", [])


def test_no_more_than_asked_for():
    text = f"<tool_call>{TWO}</tool_call><tool_call>{ONE}</tool_call> and more"
    assert parsed("hermes", [text], most=1) == ("", [("g", G)]) == parsed("hermes", list(text), most=1)


def test_ids():
    for form, length in (("hermes", 29), ("mistral", 9)):
        calls = Calls(FORMS[form], {"f"})
        calls.feed({"hermes": f"<tool_call>{ONE}", "mistral": f"[TOOL_CALLS][{ONE}]"}[form])
        assert len(calls.found[0].id) == length


@pytest.mark.parametrize(("form", "text"), [
    ("hermes", 'Well. <tool_call>{"name": "g", "arguments": {"x": 4}}</tool_call>'),
    ("llama3", '{"name": "g", "parameters": {"x": 4}}'),
    ("mistral", '[TOOL_CALLS][{"name": "g", "arguments": {"x": 4}}'),
    ("mistral", '[TOOL_CALLS]g{"x": 4}'),
])  # fmt: skip
@pytest.mark.parametrize("step", [1, 7, 999])
def test_a_call_that_is_barred_stays_text(form, text, step):
    for barred in ((), ("g",)):
        calls, content, deltas = Calls(FORMS[form], {"f", "g"}, None, barred), "", []
        for i in range(0, len(text), step):
            more, found = calls.feed(text[i : i + step])
            content, deltas = content + more, deltas + found
        content += calls.end()[0]
        said = text.replace("S][{", "S]{")  # the list around calls is no part of one
        assert (content == said and not deltas) if barred else deltas[0]["function"]["name"] == "g"
