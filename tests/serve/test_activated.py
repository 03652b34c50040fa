"""Activated LoRA in continuous batching: the tokens before the invocation are the plain base's, its cache included."""

import pytest

import commonweight as cw
from commonweight.serve import Engine

from .served import add, ask, make, right

TEXTS = (
    [9, 8, 10, 11, 5, 6, 12, 13, 5, 6, 20, 21],  # begun twice
    [9, 8, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 5, 6, 4],
    [5, 6, 11],
    [*range(30, 50), 7, *range(50, 58)],
)


@pytest.fixture
def host():
    host = cw.Host(make("llama"))
    add(host, "a", "lora", invocation=[5, 6], sites="*_proj")
    add(host, "b", "lora", invocation=[5, 6], sites="*_proj")
    add(host, "wide", "lora", rank=70, invocation=[7], sites="*_proj")  # read through the host's route
    add(host, "l", "lora", sites="*_proj")
    return host


def test_each_answer_is_its_tenants(host):
    asked = [ask(t, prompt=p, max_new_tokens=6) for t in ("a", "wide", "l", None) for p in TEXTS]
    with Engine(host, max_requests=8, max_batch_tokens=24, page_size=4) as engine:
        for _ in range(2):  # the second time from the cache of prefixes
            right(host, asked, engine.generate(asked))


def test_the_cache_of_what_stands_before_is_shared(host):
    text = TEXTS[1]
    with Engine(host, max_requests=4, max_batch_tokens=32, page_size=4) as engine:
        asked = [ask(t, prompt=text, max_new_tokens=2) for t in (None, "a", "b", "l", "a")]
        got = [engine.generate([one])[0] for one in asked]
        right(host, asked, got)
        assert [g.cached_tokens for g in got] == [0, 16, 16, 0, 16]
        longer = [ask("a", prompt=[*text, 3, 3, 3, 3, 3], max_new_tokens=2) for _ in range(2)]
        got = [engine.generate([one])[0] for one in longer]
        right(host, longer, got)
        assert got[1].cached_tokens == 20  # its own block behind the shared ones


def test_sums(host):
    with Engine(host, max_requests=2) as engine:
        asked = ask("a+0.5*b", prompt=TEXTS[0], max_new_tokens=3)
        assert engine.generate([asked])[0].finish_reason == "length"
        with pytest.raises(cw.CommonweightError, match="a sum is of such as begin at the same tokens"):
            engine.submit(ask("a+l", prompt=TEXTS[0], max_new_tokens=3))
