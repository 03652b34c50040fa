"""Tenants that go by tasks, served: a request names its task."""

import pytest
import torch

import commonweight as cw
from commonweight.serve import Encoder, Engine

from . import encoders, served
from .served import add, ask, make


def test_an_engine_answers_each_request_by_its_task():
    host = cw.Host(make("llama"))
    add(host, "t", "poly", tasks="a,b", skills=3, rank=2)
    add(host, "l", "lora")
    served.stir(host, "t", 1.0)
    text, how = [9, 8, 10, 11, 5, 6, 12], {"max_new_tokens": 5}
    wanted = {}
    for task in "ab":
        with torch.no_grad(), host.route("t", tasks=task):
            ids = torch.tensor([text])
            wanted[task] = host.model.generate(ids, do_sample=False, eos_token_id=None, **how)[0, len(text) :].tolist()
    assert wanted["a"] != wanted["b"]
    with Engine(host, max_requests=4, max_batch_tokens=32, page_size=4) as engine:
        asked = [ask("t", prompt=text, task=k, ignore_eos=True, **how) for k in "abab"]
        for _ in range(2):  # the second time from the cache of prefixes, which is each task's own
            for k, got in zip("abab", engine.generate(asked)):
                assert got.tokens == wanted[k], got.error
        half = engine.generate([ask("0.5*t+0.5*l", prompt=text, task="a", **how)])[0]
        assert half.finish_reason == "length"
        with pytest.raises(cw.CommonweightError, match="goes by tasks, and none is said; say which, of a, b"):
            engine.submit(ask("t", prompt=text))
        with pytest.raises(cw.CommonweightError, match="it knows no tasks, and 'a' is said"):
            engine.submit(ask("l", prompt=text, task="a"))
        engine.unload("t")
        with pytest.raises(cw.CommonweightError, match="unknown tenant"):
            engine.submit(ask("t", prompt=text, task="a"))


def test_an_encoder_too():
    host = encoders.host(encoders.MODELS["bert"]())
    host.add("t", "poly", tasks="a,b", skills=3, rank=2, labels=("no", "yes"))
    served.stir(host, "t")
    texts = [[9, 5, 6, 11], [7, 8, 9]]
    with Encoder(host) as encoder:
        found = {k: encoder.classify(texts, "t", task=k) for k in "ab"}
        with pytest.raises(cw.CommonweightError, match="goes by tasks"):
            encoder.embed(texts, "t")
        for k, rows in found.items():
            for ids, row in zip(texts, rows):
                with torch.no_grad(), host.route("t", tasks=k):
                    want = host.model(torch.tensor([ids])).logits[0].softmax(-1)
                torch.testing.assert_close(torch.tensor(row.shares), want, atol=2e-5, rtol=1e-4)
    assert found["a"][0].shares != found["b"][0].shares
