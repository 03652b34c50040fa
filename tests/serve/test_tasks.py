"""Tenants that go by tasks, served: a request names its task."""

import pytest
import torch
from starlette.testclient import TestClient

import commonweight as cw
from commonweight.serve import Encoder, Engine
from commonweight.serve.http import Settings
from commonweight.serve.http import make as app

from . import encoders, served
from .http import shop
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
        with pytest.raises(cw.CommonweightError, match="the plain base knows no tasks, and 'a' is said"):
            engine.submit(ask(None, prompt=text, task="a"))
        add(host, "u", "poly", tasks="b,a", skills=3, rank=2)
        with pytest.raises(cw.CommonweightError, match="have their tasks in other orders, and 0 is said; say a name"):
            engine.submit(ask("t+u", prompt=text, task=0))
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


KNOWN = "unknown task 'x' of tenant 't'; known: a, b"
UNSAID = "it goes by tasks, and none is said; say which, of a, b"


def test_over_http_a_wrong_task_is_no_missing_model():
    host = cw.Host(make("llama"))
    add(host, "t", "poly", tasks="a,b", skills=3, rank=2)
    add(host, "l", "lora")
    with shop.client(host) as client:

        def said(model, path="completions", **body):
            words = {"messages": [{"role": "user", "content": "w1"}]} if path != "completions" else {"prompt": "w1 w2"}
            got = client.post(f"/v1/{path}", json={"model": model, "max_tokens": 1, **words, **body})
            if got.status_code == 200:
                return ""
            assert got.status_code == 400 and got.json()["error"]["param"] == "task"
            return got.json()["error"]["message"]

        assert said("t", task="a") == said("l") == said("0.5*t+0.5*l", task="b") == said("l+t", task="a") == ""
        assert said("t", task="x") == said("t", "chat/completions", task="x") == said("0.5*t+0.5*l", task="x") == KNOWN
        assert "unknown task '' of tenant 't'; known: a, b" in said("t", task="")
        assert UNSAID in said("t") and UNSAID in said("0.5*t+0.5*l")
        assert "'l' (lora): it knows no tasks, and 'x' is said" in said("l", task="x")
        assert "the plain base knows no tasks, and 'x' is said" in said("base", task="x")
        assert "in which nobody goes by tasks, knows no tasks, and 'x' is said" in said("0.5*l+0.5*l", task="x")


def test_over_http_texts_are_read_and_ranked_by_their_task():
    host = encoders.host(encoders.MODELS["bert"]())
    for name, labels in (("t", ("no", "yes")), ("r", 1)):
        host.add(name, "poly", tasks="a,b", skills=3, rank=2, labels=labels)
        served.stir(host, name)
    ranked = {"query": "w10", "documents": ["w11", "w12"], "model": "r"}
    scored = {"text_1": "w10", "text_2": ["w11", "w12"], "model": "r"}
    with Encoder(host, tokenizer=shop.tokenizer()) as encoder:
        with TestClient(app(encoder, Settings(name="org/tiny")), "http://localhost") as client:
            for k in "ab":
                want = {r.index: r.score for r in encoder.rerank("w10", ["w11", "w12"], "r", task=k)}
                got = client.post("/rerank", json={**ranked, "task": k}).json()["results"]
                assert {r["index"]: r["relevance_score"] for r in got} == pytest.approx(want)
                got = client.post("/score", json={**scored, "task": k}).json()["data"]
                assert {r["index"]: r["score"] for r in got} == pytest.approx(want)
            for path, body in (("rerank", ranked), ("score", scored), ("v1/embeddings", {"model": "t", "input": "w9"})):
                for task, message in (("x", "unknown task 'x' of tenant"), (None, UNSAID)):
                    got = client.post(f"/{path}", json={**body, "task": task})
                    assert got.status_code == 400 and got.json()["error"]["param"] == "task"
                    assert message in got.json()["error"]["message"]
            got = client.post("/v1/embeddings", json={"input": "w9", "task": "x"})
            assert got.status_code == 400 and "the plain model knows no tasks" in got.json()["error"]["message"]
        assert encoder.rerank("w10", ["w11"], "t", task="a") != encoder.rerank("w10", ["w11"], "t", task="b")
