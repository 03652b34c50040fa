"""Structured answers: each is what its own request asks for, whoever else is in the batch, and whatever goes wrong."""

from __future__ import annotations

import json
import re

import pytest

from commonweight.core import CommonweightError
from commonweight.host import Host
from commonweight.serve import Engine
from commonweight.serve.grammar import Grammars, source

from .letters import letters
from .served import VOCAB, add, ask, make, right

pytest.importorskip("llguidance")

SCHEMA = {
    "type": "object", "additionalProperties": False, "required": ["name", "age"],
    "properties": {"name": {"type": "string", "maxLength": 5}, "age": {"type": "integer", "maximum": 99, "minimum": 0}},
}  # fmt: skip


@pytest.fixture(scope="module")
def host():
    found = Host(make())
    for name, method in (("a", "lora"), ("b", "ia3")):
        add(found, name, method)
    return found


@pytest.fixture(scope="module")
def engine(host):
    with Engine(host, tokenizer=letters(), max_requests=16, max_batch_tokens=64, page_size=8) as engine:
        yield engine


def structured(tenant, i, **what):
    spaces = {4: -100, 5: -100}  # this model would write as many as it may
    return ask(tenant, i, structured=what, max_new_tokens=60, ignore_eos=False, logit_bias=spaces)


KEPT = {
    "json": (SCHEMA, lambda t: {"name", "age"} == set(json.loads(t)) and 0 <= json.loads(t)["age"] <= 99),
    "regex": ("[ab]{3}-[0-9]{2}", lambda t: re.fullmatch("[ab]{3}-[0-9]{2}", t)),
    "choice": (["yes", "no", 'per"haps'], lambda t: t in ("yes", "no", 'per"haps')),
    "grammar": ('start: "x" NUMBER\nNUMBER: /[0-9]{1,3}/', lambda t: re.fullmatch("x[0-9]{1,3}", t)),
}


def test_each_answer_keeps_to_its_own_structure(host, engine):
    kinds = [*KEPT] * 2
    asked = [structured(t, i, **{k: KEPT[k][0]}) for i, (k, t) in enumerate(zip(kinds, ["a", "b", None, "a"] * 2))]
    plain = [ask(t, i) for i, t in enumerate(["a", None, "b"])]
    got = engine.generate([*asked, *plain])
    for kind, answer in zip(kinds, got):
        assert answer.error is None and answer.finish_reason == "stop", answer
        assert KEPT[kind][1](answer.text), (kind, answer.text)
    right(host, plain, got[len(asked) :])
    again = engine.generate([asked[0]])[0]
    assert again.tokens == got[0].tokens
    warm = engine.generate([ask("a", structured={"json": SCHEMA}, temperature=2.0, n=3, seed=1, max_new_tokens=80)])[0]
    texts = [c.text for c in warm.choices if c.finish_reason == "stop"]
    assert texts and all(KEPT["json"][1](t) for t in texts)


def test_a_step_that_is_done_again_and_a_small_cache_change_nothing(host, engine, monkeypatch):
    asked = [structured(t, i, **{k: KEPT[k][0]}) for i, (k, t) in enumerate(zip(KEPT, ["a", "b", None, "a"]))]
    want = [a.tokens for a in engine.generate(asked)]
    step, failed = Engine._step, []

    def failing(self, batch, processor):
        step(self, batch, processor)
        if len(batch) == len(asked) and len(failed) < 3:  # after the tokens were chosen, before they are taken
            failed.append(batch)
            raise RuntimeError("this step goes wrong")

    monkeypatch.setattr(Engine, "_step", failing)
    with Engine(host, tokenizer=letters(), max_requests=8, max_batch_tokens=64, page_size=8, cache_tokens=256) as other:
        assert [a.tokens for a in other.generate(asked)] == want and failed
    monkeypatch.undo()
    asked = [structured(t, i, regex="[a-z]{20}[A-Z]{20}") for i, t in enumerate(["a", "b", None, "a"])]
    want = [a.tokens for a in engine.generate(asked)]
    with Engine(host, tokenizer=letters(), max_requests=8, page_size=8, cache_tokens=96) as small:
        streams = [small.submit(r) for r in asked]
        assert [s.answer().tokens for s in streams] == want
        assert any(t.preempted for s in streams for t in s.tickets)


WRONG = {
    "several": ({"regex": "a", "choice": ["b"]}, "exactly one of"),
    "none": ({}, "came nothing"),
    "kind": ({"xml": "<a>"}, "came xml"),
    "choice": ({"choice": "yes"}, "wanted a list of texts"),
    "expression": ({"regex": "("}, "this regex cannot be kept to"),
    "text": ({"regex": 3}, "wanted text"),
    "schema": ({"json": "{"}, "no JSON"),
    "type": ({"json": {"type": "thing"}}, "this json cannot be kept to.*thing"),
    "ignored": ({"json": {"type": "array", "uniqueItems": True}}, "uniqueItems"),
    "lenient": ({"json": {"type": "array", "uniqueItems": True, "x-guidance": {"lenient": True}}}, "uniqueItems"),
    "object": ({"json_object": 1}, "wanted true"),
    "grammar": ({"grammar": "start: nothing"}, "cannot be kept to"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_kept_to_is_told(engine, case):
    what, told = WRONG[case]
    with pytest.raises(CommonweightError, match=told):
        engine.submit(structured("a", 0, **what))


def test_without_a_tokenizer_or_the_library(monkeypatch):
    with pytest.raises(CommonweightError, match="needs a tokenizer"):
        Grammars(None, VOCAB, {2}).of({"regex": "a"})
    monkeypatch.setitem(__import__("sys").modules, "llguidance", None)
    with pytest.raises(CommonweightError, match=r"pip install 'commonweight\[serve\]'"):
        source({"regex": "a"})
