"""Activated LoRA in continuous batching: the tokens before the invocation are the plain base's, its cache included."""

import pytest
import torch
from torch.nn import functional

import commonweight as cw
from commonweight.serve import Encoder, Engine

from . import encoders, served
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


@pytest.mark.parametrize("kind", ["bert", "qwen3"])
def test_an_encoder_reads_each_text_as_its_tenant(kind):
    host = encoders.host(encoders.MODELS[kind]())
    for name, tokens in (("inv", (5, 6)), ("other", (7,))):
        host.add(name, "lora", labels=("no", "yes"), invocation=tokens)
        served.stir(host, name)
    texts = [
        ("inv", [9, 5, 6, 11, 12]), ("inv", [5, 6, 9, 9, 5, 6, 3]), ("three", [5, 6, 9]), ("inv", [8, 8, 8]),
        ("other", [8, 8, 7, 8, 8, 9, 9, 9, 4]), ("inv", [8, 9, 10, 11, 12, 13, 5, 6]), ("other", [7]),
    ]  # fmt: skip
    with Encoder(host, max_batch_tokens=80) as encoder:
        vectors = [encoder.submit("vectors", [(ids, None)], n)[0] for n, ids in texts]
        scores = [encoder.submit("scores", [(ids, None)], n)[0] for n, ids in texts]
        for (name, ids), vector, score in zip(texts, vectors, scores):
            ids = torch.tensor([ids])
            with torch.no_grad(), host.route(name):
                features, logits = host.model.features(ids), host.model(ids).logits
            found, classes = encoder.embedding(vector), encoder.classified(score)
            assert (found.error, classes.error) == (None, None)
            want = functional.normalize(features[0], dim=-1)
            torch.testing.assert_close(torch.tensor(found.vector), want, atol=2e-5, rtol=1e-4)
            torch.testing.assert_close(torch.tensor(classes.shares), logits[0].softmax(-1), atol=2e-5, rtol=1e-4)
    with torch.no_grad():
        with host.route("inv"):
            ours = host.model.features(torch.tensor([[8, 8, 8], [5, 6, 8]]))
        base = host.model.features(torch.tensor([[8, 8, 8], [5, 6, 8]]))
    assert torch.equal(ours[0], base[0]) and not torch.allclose(ours[1], base[1], atol=1e-3)
