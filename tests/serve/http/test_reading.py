"""Vectors, classes and ranks over HTTP."""

from __future__ import annotations

import base64
import struct
from contextlib import contextmanager

import pytest
import torch
from starlette.testclient import TestClient
from torch.nn import functional as F

from commonweight.serve import Encoder
from commonweight.serve.http import Settings, make

from .. import encoders
from . import shop


@contextmanager
def serving(host, **settings):
    with Encoder(host, tokenizer=shop.tokenizer()) as encoder:
        app = make(encoder, Settings(name="org/tiny", **settings))
        with TestClient(app, "http://localhost", raise_server_exceptions=False) as found:
            yield found


@pytest.fixture(scope="module")
def host():
    return encoders.host(encoders.bert())


@pytest.fixture(scope="module")
def client(host):
    with serving(host) as found:
        yield found


def vector(host, name, text):
    with torch.no_grad(), host.route(name):
        ids = shop.tokenizer()(text)["input_ids"]
        return F.normalize(host.model.features(torch.tensor([ids]))[0], dim=-1)


def close(a, b):
    torch.testing.assert_close(torch.tensor(a), b, atol=1e-5, rtol=1e-4)


def test_vectors(client, host):
    got = client.post("/v1/embeddings", json={"model": "three", "input": ["w1 w2", "w3"]}).json()
    assert got["object"] == "list" and got["model"] == "three"
    assert got["usage"] == {"prompt_tokens": 3, "total_tokens": 3, "completion_tokens": 0}
    for i, text in enumerate(("w1 w2", "w3")):
        assert got["data"][i]["index"] == i and got["data"][i]["object"] == "embedding"
        close(got["data"][i]["embedding"], vector(host, "three", text))
    packed = client.post("/v1/embeddings", json={"input": [8, 9], "encoding_format": "base64"}).json()
    raw = base64.b64decode(packed["data"][0]["embedding"])
    close(struct.unpack(f"<{len(raw) // 4}f", raw), vector(host, None, "w1 w2"))
    cut = client.post("/v1/embeddings", json={"input": "w1 w2 w3", "truncate_prompt_tokens": 2}).json()
    close(cut["data"][0]["embedding"], vector(host, None, "w1 w2"))


def test_classes(client, host):
    for path in ("/v1/classify", "/classify"):
        got = client.post(path, json={"model": "three", "input": ["w1 w2", "w3"]}).json()
        with torch.no_grad(), host.route("three"):
            want = host.model(torch.tensor([[10]])).logits[0].softmax(-1)
        assert got["data"][1]["label"] == ("no", "so", "yes")[int(want.argmax())]
        assert got["data"][1]["num_classes"] == 3
        close(got["data"][1]["probs"], want)


def test_ranks_and_scores(client, host):
    documents = ["w9 w8", {"text": "w1 w2"}, "w3"]
    got = client.post("/v1/rerank", json={"model": "five", "query": "w1 w2", "documents": documents, "top_n": 2}).json()
    assert got["results"][0]["index"] == 1 and len(got["results"]) == 2
    assert got["results"][0]["document"] == {"text": "w1 w2"}
    assert got["results"][0]["relevance_score"] == pytest.approx(1, abs=1e-5)
    body = {"text_1": ["w1", "w2"], "text_2": ["w3", "w2"]}
    got = client.post("/v1/score", json=body).json()["data"]
    want = [float(vector(host, None, a) @ vector(host, None, b)) for a, b in (("w1", "w3"), ("w2", "w2"))]
    assert [x["score"] for x in got] == pytest.approx(want, abs=1e-5)
    one = client.post("/score", json={"text_1": "w1", "text_2": ["w3", "w2"]}).json()["data"]
    want = [float(vector(host, None, "w1") @ vector(host, None, b)) for b in ("w3", "w2")]
    assert [x["score"] for x in one] == pytest.approx(want, abs=1e-5)


def test_a_cross_encoder_scores_pairs():
    with serving(encoders.ranker_host()) as client:
        body = {"query": "w1 w2", "documents": ["w3", "w4 w5"], "return_documents": False}
        got = client.post("/v1/rerank", json=body).json()
        ranked = {r["index"]: r["relevance_score"] for r in got["results"]}
        one = client.post("/v1/score", json={"text_1": "w1 w2", "text_2": ["w3", "w4 w5"]}).json()["data"]
        assert [x["score"] for x in one] == pytest.approx([ranked[0], ranked[1]], abs=1e-6)
        assert all("document" not in r for r in got["results"])


def test_what_is_wrong_is_told(client):
    for path, body, status, told in (
        ("/v1/embeddings", {"input": []}, 400, "input: empty"),
        ("/v1/embeddings", {"input": [[]]}, 400, "text 0"),
        ("/v1/embeddings", {"input": "w1", "model": "nobody"}, 404, "does not exist"),
        ("/v1/embeddings", {"input": "w1", "dimensions": 8}, 400, "32 numbers"),
        ("/v1/embeddings", {"input": "w1 " * 65}, 400, "65 tokens"),
        ("/v1/embeddings", {"input": ["w1"] * 2049}, 400, "at most 2048"),
        ("/v1/embeddings", {"input": [[97]]}, 400, "token 97"),
        ("/v1/classify", {"input": "w1"}, 400, "has no classes"),
        ("/v1/rerank", {"query": "w1", "documents": []}, 400, "documents"),
        ("/v1/rerank", {"query": "w1", "documents": [{"title": "w1"}]}, 400, "documents.0"),
        ("/v1/score", {"text_1": ["w1", "w2"], "text_2": ["w1"]}, 400, "2 texts beside 1"),
        ("/v1/chat/completions", {"messages": []}, 404, "an encoder"),
    ):
        got = client.post(path, json=body)
        assert got.status_code == status, (path, body, got.text)
        assert told in got.json()["error"]["message"], got.text
    for path, body, field, told in (
        ("/v1/embeddings", {"input": "w1 " * 65}, "input", "text 0 has 65"),
        ("/v1/embeddings", {"input": 5}, "input", "a valid string; or input: Input should be a valid list"),
        ("/v1/rerank", {"query": "", "documents": ["w1"]}, "query", "query is empty"),
        ("/v1/rerank", {"query": "w1", "documents": ["w1", ""]}, "documents", "document 1 is empty"),
        ("/v1/score", {"text_1": ["w1", "w2"], "text_2": ["w1", ""]}, "text_2", "text_2 1 is empty"),
    ):
        error = client.post(path, json=body).json()["error"]
        assert error["param"] == field and told in error["message"], error
    assert client.get("/health").status_code == 200
    assert "vllm:prompt_tokens_total" in client.get("/metrics").text


def test_a_language_models_server_says_where_vectors_are_made():
    with shop.client(shop.host()) as client:
        got = client.post("/v1/embeddings", json={"input": "w1"})
        assert got.status_code == 404 and "--task embed" in got.json()["error"]["message"]


def test_openais_client_reads_vectors(client, host):
    openai = pytest.importorskip("openai")
    asked = openai.OpenAI(base_url="http://localhost/v1", api_key="none", http_client=client)
    got = asked.embeddings.create(model="three", input=["w1 w2"])
    close(got.data[0].embedding, vector(host, "three", "w1 w2"))
