"""Each answer equals its tenant's alone, whoever else is in the batch; what goes wrong stays with its own request."""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np
import pytest
import torch

import commonweight as cw
from commonweight.core import CommonweightError
from commonweight.serve import Engine, Request
from commonweight.serve.readers import Step

from ..laws.subjects import METHODS, can, small
from .served import FAMILIES, VOCAB, add, alone, ask, make, prompt, right

FIVE = {"a": "lora", "b": "ia3", "c": "dora", "d": "mos", "e": "vb-lora"}


def hosted(family: str = "llama", methods: dict[str, str] | None = None) -> cw.Host:
    host = cw.Host(make(family))
    for name, method in (FIVE if methods is None else methods).items():
        add(host, name, method)
    return host


@pytest.fixture(scope="module")
def host() -> cw.Host:
    return hosted()


@pytest.fixture(scope="module")
def engine(host: cw.Host):
    with Engine(host, max_requests=16, max_batch_tokens=64, page_size=8) as engine:
        yield engine


@pytest.mark.parametrize("family", FAMILIES)
def test_each_answer_is_its_tenants(family: str):
    host = hosted(family, {"a": "lora", "b": "ia3", "c": "dora"})
    asked = [ask(t, i) for i, t in enumerate([None, "a", "b", "c", "a", None, "b", "c"])]
    with Engine(host, max_requests=6, max_batch_tokens=32, page_size=8) as engine:
        right(host, asked, engine.generate(asked))
        right(host, asked[::-1], engine.generate(asked[::-1]))


def test_every_method_serves_in_one_batch():
    host = cw.Host(make())
    names = [m for m in METHODS if can(m, host) and m not in ("bitfit", "probe")]  # a Llama has no bias
    for name in names:
        add(host, name, name, **small(name))
    host.add("first", "loreft", prefix=3)
    asked = [ask(t, i, max_new_tokens=4) for i, t in enumerate([*names, "first", None])]
    with Engine(host, max_requests=len(asked), max_batch_tokens=256) as engine:
        right(host, asked, engine.generate(asked))


def test_answers_do_not_depend_on_what_else_runs(host: cw.Host, engine: Engine):
    asked = [ask(t, i, max_new_tokens=3 + i) for i, t in enumerate([None, *FIVE] * 3)]
    right(host, asked, engine.generate(asked))


def test_a_prefix_is_found_within_one_tenant_alone(host: cw.Host, engine: Engine):
    common = prompt(5, 40)
    asked = [ask(t, prompt=common) for t in [None, *FIVE]]
    right(host, asked, engine.generate(asked))
    again = engine.generate(asked)
    right(host, asked, again)
    assert all(a.cached_tokens == 32 for a in again)  # four whole pages of 8 tokens and a part of the fifth


def test_a_prefix_is_found_within_one_salt_alone(host: cw.Host, engine: Engine):
    asked = [ask("d", prompt=prompt(6, 40), cache_salt=s) for s in (None, "x", "y", "x", None, "y")]
    answers = [engine.generate([r])[0] for r in asked]
    right(host, asked, answers)
    assert [a.cached_tokens for a in answers] == [0, 0, 0, 32, 32, 32]


def test_a_changed_tenant_has_no_old_prefixes():
    host = hosted(methods={"a": "lora"})
    asked = ask("a", prompt=prompt(2, 30))
    with Engine(host, page_size=8) as engine:
        engine.generate([asked])
        with torch.no_grad():
            for p in host["a"].parameters():
                p.add_(0.3)
        answer = engine.generate([asked])[0]
        assert answer.cached_tokens == 0
        right(host, [asked], [answer])


def test_requests_hold_their_tenant():
    host = hosted(methods={"a": "lora", "b": "bottleneck"})
    asked = [ask(t, i, max_new_tokens=40) for i, t in enumerate(["a", "b"])]
    want = [alone(host, r) for r in asked]
    with Engine(host) as engine:
        streams = [engine.submit(r) for r in asked]
        for name in ("a", "b"):
            host.remove(name)
        add(host, "a", "lora", seed=5)
        newer = ask("a", 0)
        assert [s.answer().tokens for s in streams] == want
        right(host, [newer], engine.generate([newer]))
        assert "unknown tenant" in (engine.generate([ask("b")])[0].error or "")


def test_numbers_that_are_not_finite_end_their_own_answers(host: cw.Host, engine: Engine):
    for name, method in (("ill", "lora"), ("worse", "bottleneck")):
        add(host, name, method)
        with torch.no_grad():
            next(iter(host[name].parameters())).fill_(float("nan"))
    try:
        asked = [ask(t, i) for i, t in enumerate(["a", "ill", None, "worse", "d", "e"])]
        answers = engine.generate(asked)
        for i in (1, 3):
            assert answers[i].finish_reason == "error" and "no finite numbers" in (answers[i].error or "")
        well = [0, 2, 4, 5]
        right(host, [asked[i] for i in well], [answers[i] for i in well])
    finally:
        host.remove("ill")
        host.remove("worse")


def test_a_failure_in_a_step_is_its_own_requests(host: cw.Host, engine: Engine):
    class Broken(torch.nn.Module):
        def __call__(self, *args: object, **kwargs: object) -> torch.Tensor:
            raise RuntimeError("a disk on fire")

    add(host, "broken", "bottleneck")
    for entries in host["broken"].table.values():
        for entry in entries:
            entry.output = entry.grouped = Broken()
    try:
        asked = [ask(t, i, max_new_tokens=9) for i, t in enumerate(["a", "broken", None, "b", "c", "broken", "d"])]
        answers = engine.generate(asked)
        for i in (1, 5):
            assert answers[i].finish_reason == "error" and "a disk on fire" in (answers[i].error or "")
        well = [0, 2, 3, 4, 6]
        right(host, [asked[i] for i in well], [answers[i] for i in well])
        right(host, asked[:1], engine.generate(asked[:1]))
    finally:
        host.remove("broken")


@pytest.mark.parametrize("least", [0, 3, 100])
def test_who_fails_to_take_a_piece_ends_its_own_answer(host: cw.Host, engine: Engine, least: int, caplog):
    """At the first piece, at a later one, or where it is told of another error."""
    got: list[object] = []

    def deliver(piece: object) -> None:
        got.append(piece)
        if len(got) > least or getattr(piece, "finish_reason", None):
            raise ValueError("no room")

    other = engine.submit(ask("b", 1, max_new_tokens=30))
    stream = engine.submit(ask("a", max_new_tokens=200), deliver)
    if least == 100:
        stream.cancel()
    deadline = time.monotonic() + 20
    while stream.tickets[0].reason is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert stream.tickets[0].reason == "error" and stream.tickets[0].error == "ValueError: no room"
    right(host, [ask("b", 1, max_new_tokens=30)], [other.answer()])
    assert not engine.closed and len(got) <= least + 1 and "which ends it" in caplog.text


def test_more_than_fits_waits_and_is_answered(host: cw.Host):
    asked = [ask(t, i, max_new_tokens=20) for i, t in enumerate([None, *FIVE])]
    with Engine(host, max_requests=4, max_batch_tokens=16, cache_tokens=96, page_size=8) as small:
        right(host, asked, small.generate(asked))


def test_cancelled_requests_are_answered_and_free_their_place(host: cw.Host, engine: Engine):
    stream = engine.submit(ask("a", max_new_tokens=200))
    pieces = iter(stream)
    next(pieces)
    stream.cancel()
    rest = list(pieces)
    assert rest[-1].finish_reason == "cancelled" and rest[-1].error is None
    for _ in engine.stream(ask("b", max_new_tokens=200)):
        break  # leaving the loop cancels
    deadline = threading.Event()
    for _ in range(200):
        if engine.running == 0:
            break
        deadline.wait(0.02)
    assert engine.running == 0
    right(host, [ask("c", 1)], engine.generate([ask("c", 1)]))


def test_a_request_that_takes_too_long_ends_with_what_it_has(engine: Engine):
    answer = engine.generate([ask("a", max_new_tokens=200, timeout=0.02)])[0]
    assert answer.finish_reason == "timeout" and len(answer.tokens) < 200


def test_pieces_make_the_answer(engine: Engine):
    asked = ask("a", 3, logprobs=2)
    pieces = list(engine.stream(asked))
    answer = engine.generate([asked])[0]
    assert [t for p in pieces for t in p.tokens] == answer.tokens
    assert [x.token for p in pieces for x in p.logprobs] == answer.tokens
    assert [p.finish_reason for p in pieces] == [None] * (len(pieces) - 1) + ["length"]


def test_the_models_own_end_stops_an_answer(host: cw.Host, engine: Engine):
    asked = ask("a", 1, max_new_tokens=8)
    ends = engine.generate([asked])[0].tokens[2]
    stopped = engine.generate([ask("a", 1, max_new_tokens=8, stop_token_ids=[ends])])[0]
    assert stopped.finish_reason == "stop"
    assert stopped.tokens == engine.generate([asked])[0].tokens[: len(stopped.tokens)]
    assert stopped.tokens[-1] == ends


def test_nothing_ends_an_answer_before_its_least_length(engine: Engine):
    plain = engine.generate([ask("a", 1, max_new_tokens=8)])[0].tokens
    how = {"max_new_tokens": 8, "stop_token_ids": [plain[2]]}
    early, late, other = engine.generate(
        [ask("a", 1, **how), ask("a", 1, min_tokens=5, **how), ask("a", 1, max_new_tokens=8)]
    )
    first = early.tokens.index(plain[2])
    assert early.tokens == plain[: first + 1] and other.tokens == plain, "others are not held to it"
    assert late.tokens[:first] == plain[:first] and plain[2] not in late.tokens[:5]
    drawn = engine.generate([ask("a", 1, temperature=2.0, seed=s, min_tokens=6, **how) for s in range(8)])
    assert all(plain[2] not in a.tokens[:6] and len(a.tokens) >= 6 for a in drawn)
    whole = engine.generate([ask("a", 1, min_tokens=8, **how)])[0]
    assert whole.finish_reason == "length" and len(whole.tokens) == 8


def test_seeds_decide_draws_whatever_the_batch(engine: Engine):
    one = ask("a", 1, temperature=1.5, seed=11, top_p=0.9, max_new_tokens=12)
    others = [ask(t, i, temperature=1, max_new_tokens=9) for i, t in enumerate([None, "b", "c", "d"])]
    first = engine.generate([one])[0].tokens
    assert engine.generate([*others, one, *others])[4].tokens == first
    assert engine.generate([ask("a", 1, temperature=1.5, seed=12, top_p=0.9, max_new_tokens=12)])[0].tokens != first


def test_token_ids_may_be_numpys(host: cw.Host, engine: Engine):
    plain = ask("a", 1)
    asked = ask("a", prompt=[*np.array(plain.prompt)])
    assert engine.generate([asked])[0].tokens == alone(host, plain)


def test_n_answers(engine: Engine):
    answer = engine.generate([ask("a", 1, temperature=2.0, n=3, seed=1)])[0]
    assert [a.index for a in answer.choices] == [0, 1, 2]
    assert len({tuple(a.tokens) for a in answer.choices}) > 1
    assert answer.tokens == answer.choices[0].tokens


WRONG = {
    "a tenant that is not there": (Request([3], tenant="zoe"), "unknown tenant"),
    "a token outside": (Request([3, VOCAB]), "from 0 to 96"),
    "no token": (Request([]), "at least one token"),
    "text without a tokenizer": (Request("Hello"), "no tokenizer"),
    "a tensor": (Request(torch.tensor([3, 4])), "as tolist() of one row gives them"),  # type: ignore[arg-type]
    "too long": (Request([3] * 200, max_new_tokens=100), "shorten the prompt"),
    "temperature": (Request([3], temperature=-1), "temperature is -1"),
    "nan": (Request([3], top_p=float("nan")), "top_p is nan"),
    "stop": (Request([3], stop=""), "none of them empty"),
    "n": (Request([3], n=0), "n is 0"),
    "logprobs": (Request([3], logprobs=99), "logprobs is 99"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_requests_are_said_and_harm_nobody(host: cw.Host, engine: Engine, case: str):
    wrong, says = WRONG[case]
    good = ask("a", 2)
    bad, fine = engine.generate([wrong, good])
    assert bad.finish_reason == "error" and says in (bad.error or "")
    right(host, [good], [fine])
    with pytest.raises(CommonweightError):
        engine.submit(wrong)


@pytest.mark.parametrize(("said", "told"), [
    ({"max_requests": 0}, "max_requests is 0; wanted a whole number >= 1"),
    ({"max_batch_tokens": 0}, "max_batch_tokens is 0"),
    ({"page_size": 3}, "page_size is 3; wanted a whole number >= 4"),
    ({"cache_tokens": 10**13}, "a cache of 10,000,000,000,000 tokens, and steps of 512, have no room in the memory"),
    ({"cache_tokens": 0}, "cache_tokens is 0"), ({"max_waiting": "x"}, "max_waiting is 'x'"),
    ({"tenant_memory": -5}, "tenant_memory is -5; wanted a whole number >= 0"), ({"store": "none"}, "is not a store"),
])  # fmt: skip
def test_what_an_engine_cannot_be_told(said, told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CommonweightError, match=told):
        Engine(make(), **said)
    assert not [*tmp_path.iterdir()]
    with pytest.raises(CommonweightError, match="Linear generates no text"):
        Engine(torch.nn.Linear(2, 2))


def test_more_answers_than_may_wait_are_refused_for_good():
    with Engine(hosted(methods={}), max_waiting=2) as engine:
        assert "at most 2 answers may wait" in (engine.generate([ask(None, n=3)])[0].error or "")


def test_a_request_that_comes_while_an_engine_ends_is_answered(monkeypatch):
    with Engine(hosted(methods={})) as engine:
        manager = engine._manager
        monkeypatch.setattr(manager, "submit", lambda ticket: manager.stop(block=True, hard_stop=True))
        assert "the engine has stopped" in (engine.submit(ask(None)).answer().error or "")


def test_the_model_is_as_before_once_it_is_closed():
    host = hosted(methods={"a": "lora"})
    how = host.model.config._attn_implementation
    engine = Engine(host)
    stream = engine.submit(ask("a", max_new_tokens=200))
    engine.close()
    engine.close()
    assert (found := stream.answer()).finish_reason in ("error", "length")
    assert found.error in (None, "the engine has stopped before this answer was finished: it was closed")
    assert host.model.config._attn_implementation == how
    with pytest.raises(CommonweightError, match="closed"):
        engine.submit(ask("a"))
    assert not any("serve" in type(h).__module__ for m in host.model.modules() for h in m._forward_hooks.values())


def test_the_model_answers_others_meanwhile(host: cw.Host, engine: Engine):
    ids = torch.tensor([[0, 0, *prompt(1, 5)], prompt(2, 7)])
    mask = torch.ones_like(ids)
    mask[0, :2] = 0
    stream = engine.submit(ask("a", max_new_tokens=30))
    with torch.no_grad(), host.route(["b", None]):
        both = host.model(input_ids=ids, attention_mask=mask).logits
    with torch.no_grad(), host.route("b"):
        one = host.model(input_ids=ids[:1, 2:]).logits
    assert stream.answer().error is None
    assert torch.allclose(both[0, 2:], one[0], atol=1e-4)


def test_a_step_is_its_threads_alone(host: cw.Host, engine: Engine):
    ids = torch.tensor([prompt(1, 3)])
    with torch.no_grad():
        plain = host.model(input_ids=ids).logits
    lanes, edition = engine._router.lanes, engine.tenants.edition("a")
    lanes.open(Step([(*lanes.sit([edition])[edition], 3)], ids.device))
    found: list[torch.Tensor] = []

    def other() -> None:
        with torch.no_grad(), host.route(None):
            found.append(host.model(input_ids=ids).logits)

    try:
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        with torch.no_grad():
            mine = host.model(input_ids=ids).logits
    finally:
        lanes.open(None)
    assert torch.equal(found[0], plain) and not torch.allclose(mine, plain, atol=1e-3)


def test_models_that_cannot_be_served_are_refused():
    import transformers as tf

    bloom = tf.BloomForCausalLM(tf.BloomConfig(hidden_size=32, n_layer=2, n_head=4, vocab_size=VOCAB)).eval()
    with pytest.raises(CommonweightError, match="paged cache"):
        Engine(bloom)
    encoder = tf.BertModel(tf.BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=4, vocab_size=VOCAB))
    with pytest.raises(CommonweightError, match="generates no text"):
        Engine(encoder)


def test_a_model_in_half_precision_answers_as_its_tenants_do():
    host = cw.Host(make().to(torch.bfloat16))
    for name, method in {"a": "lora", "b": "ia3", "c": "dora"}.items():
        add(host, name, method)
    asked = [ask(t, i, logprobs=0) for i, t in enumerate(["a", "b", "c", None, "a"])]
    with Engine(host, max_requests=4, max_batch_tokens=32, page_size=8) as engine:
        answers = engine.generate(asked)
        held = [
            layer.group.A
            for bank in engine._router.lanes.banks.values()
            for layer in bank.layers.values()
            if layer.group
        ]
        assert {A.dtype for A in held} == {torch.bfloat16}
    for request, answer in zip(asked, answers, strict=True):
        assert answer.error is None and answer.logprobs is not None
        ids = torch.tensor([[*request.prompt, *answer.tokens[:-1]]])
        with torch.no_grad(), host.route(request.tenant):
            logits = host.model(input_ids=ids, use_cache=False).logits[0, len(request.prompt) - 1 :].float()
        want = torch.log_softmax(logits, -1).gather(1, torch.tensor(answer.tokens)[:, None])[:, 0]
        assert torch.allclose(torch.tensor([x.logprob for x in answer.logprobs]), want, atol=0.2)


def test_a_burst_of_one_tenant_does_not_keep_others_waiting(host: cw.Host):
    order: list[str] = []
    with Engine(host, max_requests=2, max_batch_tokens=32, page_size=8) as engine:
        with engine._manager.pause():  # all of them wait before the first is taken
            burst = [ask("a", i, max_new_tokens=4) for i in range(6)]
            streams = [(f"a{i}", engine.submit(r)) for i, r in enumerate(burst)]
            streams += [(t, engine.submit(ask(t, 1, max_new_tokens=4))) for t in ("b", "c")]
        for _, stream in streams:
            assert stream.answer().error is None
        ends = {name: s.tickets[0].first for name, s in streams}
        order = sorted(ends, key=lambda name: ends[name] or 0)
    assert order[:4] == ["a0", "b", "c", "a1"]  # two at a time, a third one for who has none, each in turn


def test_a_full_house_keeps_places_for_tenants_that_have_none():
    host = hosted()
    with Engine(host, max_requests=4, max_batch_tokens=32, page_size=8) as engine:
        ended: list[str] = []

        def told(name: str):
            return lambda piece: ended.append(name) if piece.finish_reason else None

        loud = [engine.submit(ask("a", i, max_new_tokens=40), told("loud")) for i in range(8)]
        while engine.running < 4:
            time.sleep(0.001)
        quiet = ask("b", 1, max_new_tokens=2)
        assert engine.stream(quiet).__next__().tokens
        assert ended == [] or len(ended) < 4  # nobody of the four had to end first
        for stream in loud:
            stream.cancel()


@pytest.mark.parametrize("about", (False, True))
def test_a_burst_has_a_part_of_each_step_while_others_are_about(about: bool):
    """Five prompts of 40 tokens: whole steps of 160 where nobody else is there, a quarter of that beside another."""
    with Engine(hosted(), max_requests=8, max_batch_tokens=160, page_size=8) as engine:
        steps: list[int] = []
        scheduler: Any = engine._manager.batch_processor.scheduler  # type: ignore[union-attr]
        with engine._manager.pause():
            engine.stepped = steps.append
            scheduler.asked.clear()  # the engine's own look at itself is lately
            asked = [ask("a", i, prompt=prompt(i, 40), max_new_tokens=4) for i in range(5)]
            other = [ask("b", 1, prompt=prompt(9, 20), max_new_tokens=1)] if about else []
            streams = [engine.submit(r) for r in (*asked, *other)]
        assert all(s.answer().error is None for s in streams)
    assert steps[:3] == ([100, 42, 43] if about else [160, 44, 5])
