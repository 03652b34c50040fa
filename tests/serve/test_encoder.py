"""Encoders: every text of a mixed batch as its tenant alone; batches by length; errors that stay where they belong."""

from __future__ import annotations

import json
import threading

import pytest
import torch
import transformers as tf
from tokenizers import processors
from torch.nn import functional as F

import commonweight as cw
from commonweight.core import CommonweightError
from commonweight.host import Host
from commonweight.serve import Encoder, Engine, outputs
from commonweight.serve.engine import Full

from . import encoders, served
from .http import shop

NAMES = (None, "three", "five", "plain")


def texts(n=24):
    return [(NAMES[i % 4], served.prompt(i, 1 + (i * 7) % 19)) for i in range(n)]


def alone(host, name, ids):
    with torch.no_grad(), host.route(name):
        return host.model.features(torch.tensor([ids]))[0]


@pytest.mark.parametrize("kind", encoders.MODELS)
def test_each_text_is_its_tenants_alone(kind):
    host = encoders.host(encoders.MODELS[kind]())
    with Encoder(host, max_batch_tokens=80) as encoder:
        asked = [encoder.submit("vectors", [(ids, None)], name)[0] for name, ids in texts()]
        found = [encoder.embedding(r) for r in asked]
        heads = [(n, ids) for n, ids in texts() if n in ("three", "five")]
        classes = [encoder.classified(encoder.submit("scores", [(ids, None)], n)[0]) for n, ids in heads]
    for (name, ids), one in zip(texts(), found):
        want = F.normalize(alone(host, name, ids), dim=-1)
        assert one.error is None and one.tokens == len(ids)
        torch.testing.assert_close(torch.tensor(one.vector), want, atol=2e-5, rtol=1e-4)
    for (name, ids), one in zip(heads, classes):
        with torch.no_grad(), host.route(name):
            want = host.model(torch.tensor([ids])).logits[0].softmax(-1)
        torch.testing.assert_close(torch.tensor(one.shares), want, atol=2e-5, rtol=1e-4)
        assert one.label == host[name].labels[int(want.argmax())] and one.labels == host[name].labels


@pytest.mark.parametrize("kind", ["bert", "deberta", "t5"])
def test_prompts_beside_others(kind):
    """Of different lengths, with heads and without, and a text that no table of positions holds behind one."""
    host = encoders.host(getattr(encoders, kind)())
    host.add("prompt", "prompt-tuning", tokens=4, labels=3)
    host.add("long", "dept", tokens=7, rank=2, length=9)
    served.stir(host, "prompt"), served.stir(host, "long")
    names = (None, "prompt", "three", "long")
    asked = [(names[i % 4], served.prompt(i, 1 + (i * 7) % 19)) for i in range(16)] + [("long", [5] * 58)]
    with Encoder(host, max_batch_tokens=80) as encoder:
        found = [encoder.submit("vectors", [(ids, None)], name)[0] for name, ids in asked]
        found = [encoder.embedding(r) for r in found]
        label = encoder.classify([[5, 6, 7]], "prompt")[0]
    for (name, ids), one in zip(asked[:16], found):
        want = F.normalize(alone(host, name, ids), dim=-1)
        torch.testing.assert_close(torch.tensor(one.vector), want, atol=2e-5, rtol=1e-4)
    assert kind == "t5" or "table of positions holds 64" in (found[16].error or "")
    with torch.no_grad(), host.route("prompt"):
        want = host.model(torch.tensor([[5, 6, 7]])).logits[0].softmax(-1)
    torch.testing.assert_close(torch.tensor(label.shares), want, atol=2e-5, rtol=1e-4)


def test_batches_hold_texts_of_like_length():
    host = encoders.host(encoders.bert())
    with Encoder(host, max_batch_tokens=40, max_requests=6) as encoder:
        seen, gate, read = [], threading.Event(), encoder._read

        def watched(batch):
            seen.append([len(r.ids) for r in batch])
            gate.wait(10)
            return read(batch)

        encoder._read = watched
        first = encoder.submit("vectors", [([5], None)], None)
        while encoder.waiting:
            threading.Event().wait(0.01)
        rest = encoder.submit("vectors", [([5] * n, None) for n in (20, 2, 19, 3, 2, 40, 3)], "three")
        gate.set()
        for r in (*first, *rest):
            r.found.result(10)
    assert seen[0] == [1] and sorted(n for b in seen for n in b) == [1, 2, 2, 3, 3, 19, 20, 40]
    assert sorted(map(tuple, seen[1:])) == [(2, 2, 3, 3), (19, 20), (40,)]
    assert all(len(b) * max(b) <= 40 and len(b) <= 6 for b in seen)


def test_a_tenants_turn_comes_while_another_bursts():
    host = encoders.host(encoders.bert())
    with Encoder(host, max_requests=1) as encoder:
        order, gate, read = [], threading.Event(), encoder._read

        def watched(batch):
            gate.wait(10)
            order.extend(r.tenant and r.tenant.name for r in batch)
            return read(batch)

        encoder._read = watched
        asked = encoder.submit("vectors", [([5, 6], None)] * 6, "three")
        asked += encoder.submit("vectors", [([5, 6], None)] * 2, "five")
        gate.set()
        for r in asked:
            r.found.result(10)
    assert [i for i, n in enumerate(order) if n == "five"] in ([1, 3], [2, 4]), order


def test_what_goes_wrong_with_one_tenant_is_its_own():
    host = encoders.host(encoders.bert())
    with torch.no_grad():
        next(iter(host["plain"].parameters())).fill_(float("inf"))
    with Encoder(host) as encoder:
        with pytest.raises(CommonweightError, match="'plain' has parameters that are no finite"):
            encoder.embed([[5, 6]], "plain")
        read = encoder._read

        def broken(batch):
            if any(r.tenant is host["five"] for r in batch):
                raise RuntimeError("a kernel broke")
            return read(batch)

        encoder._read = broken
        asked = [encoder.submit("vectors", [([5, 6, 7], None)], n)[0] for n in ("three", "five", None)]
        three, five, base = (encoder.embedding(r) for r in asked)
    assert three.error is None and base.error is None and not five.vector
    assert "a kernel broke" in five.error


def test_wrong_input_is_told_and_nothing_is_read():
    host = encoders.host(encoders.bert())
    with Encoder(host, max_waiting=2) as encoder:
        for ask, told in (
            (lambda: encoder.embed(["w1"]), "no tokenizer"),
            (lambda: encoder.embed([[5], []]), "text 1 is"),
            (lambda: encoder.embed([[5, 97]]), "token 97"),
            (lambda: encoder.embed([[5] * 65]), "65 tokens, and the model reads 64"),
            (lambda: encoder.embed([[5]], "nobody"), "nobody"),
            (lambda: encoder.classify([[5]]), "the plain model has no classes"),
            (lambda: encoder.classify([[5]], "plain"), "'plain' has no classes"),
        ):
            with pytest.raises(CommonweightError, match=told):
                ask()
        gate, read = threading.Event(), encoder._read
        encoder._read = lambda batch: (gate.wait(10), read(batch))[1]
        first = encoder.submit("vectors", [([5], None)], None)
        while encoder.waiting:
            threading.Event().wait(0.01)
        held = encoder.submit("vectors", [([5], None)] * 2, None)
        with pytest.raises(Full, match="2 texts wait"):
            encoder.submit("vectors", [([5], None)], None)
        gate.set()
        assert all(encoder.embedding(r).error is None for r in (*first, *held))
        assert len(encoder.embed([[5] * 40] * 9)) == 9  # more than may wait, when nobody does
    with pytest.raises(CommonweightError, match="closed"):
        encoder.embed([[5]])


def test_a_cross_encoder_reads_pairs_and_others_compare_vectors():
    model = encoders.ranker()
    with Encoder(model, tokenizer=shop.tokenizer()) as encoder:
        found = encoder.rerank("w1 w2", ["w3", "w1 w2 w4", "w5"])
        with torch.no_grad():
            want = {
                i: model(torch.tensor([encoder.tokenizer("w1 w2", d)["input_ids"]])).logits[0, 0].sigmoid().item()
                for i, d in enumerate(["w3", "w1 w2 w4", "w5"])
            }
        assert [r.index for r in found] == sorted(want, key=lambda i: -want[i])
        assert all(abs(r.score - want[r.index]) < 1e-5 for r in found)
        assert len(encoder.rerank("w1", ["w2", "w3"], top=1)) == 1
    host = encoders.host(encoders.bert())
    with Encoder(host, tokenizer=shop.tokenizer()) as encoder:
        found = {r.index: r.score for r in encoder.rerank("w1 w2", ["w1 w2", "w9 w8 w7"], "plain")}
        ids = [encoder.tokenizer(t)["input_ids"] for t in ("w1 w2", "w9 w8 w7")]
        a, b = (alone(host, "plain", i) for i in ids)
    assert found[0] == pytest.approx(1, abs=1e-5)
    assert found[1] == pytest.approx(float(F.cosine_similarity(a, b, dim=-1)), abs=1e-5)


def test_a_folder_says_how_it_pools_and_how_long_its_texts_are(tmp_path):
    encoders.bert().save_pretrained(tmp_path)
    shop.tokenizer().save_pretrained(tmp_path)
    assert outputs.pool_of(str(tmp_path)) is None and not outputs.generates(str(tmp_path))
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    modules = [{"path": p, "type": f"sentence_transformers.models.{k}"} for p, k in kinds]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text(
        json.dumps({"word_embedding_dimension": 32, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False})
    )
    (tmp_path / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 12}))
    with cw.Encoder(str(tmp_path)) as encoder:
        assert encoder.outputs.pool == "cls" and encoder.length == 12
        ids = encoder.tokenizer("w1 w2 w3")["input_ids"]
        with torch.no_grad():
            want = F.normalize(encoder.model.encoder(torch.tensor([ids])).last_hidden_state[0, 0], dim=-1)
        torch.testing.assert_close(torch.tensor(encoder.embed(["w1 w2 w3"])[0].vector), want)
        with pytest.raises(CommonweightError, match="reads 12"):
            encoder.embed(["w1 " * 13])
        cut = encoder.submit("vectors", [("w1 " * 13, None), ([8] * 20, None)], None, -1)
        assert [len(r.ids) for r in cut] == [12, 12]
    (tmp_path / "modules.json").write_text(json.dumps([*modules, {"path": "3", "type": "x.Dense"}]))
    with pytest.raises(CommonweightError, match="Dense"):
        outputs.pool_of(str(tmp_path))


def test_a_model_that_padding_changes_is_refused():
    class Careless(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.config = encoders.bert().config
            self.table = torch.nn.Embedding(served.VOCAB, 8)

        def get_input_embeddings(self):
            return self.table

        def forward(self, input_ids, attention_mask=None, **_):
            hidden = self.table(input_ids)
            return type("Out", (), {"last_hidden_state": hidden + hidden.mean(1, keepdim=True)})()

    with pytest.raises(CommonweightError, match="cannot be served in batches"):
        Encoder(Host(Careless()))


def test_a_tenant_of_the_store_is_loaded_and_makes_room(tmp_path):
    host = encoders.host(encoders.bert())
    store = cw.Commons(tmp_path / "shop")
    for name in ("three", "five"):
        host.save(name, tmp_path / f"{name}.safetensors")
        store.publish_file(tmp_path / f"{name}.safetensors", name)
    want = {n: alone(host, n, [5, 6, 7]) for n in ("three", "five")}
    again = Host(adapt_classifier())
    with Encoder(again, store=store, tenant_memory=1) as encoder:
        for name in ("three", "five", "three"):
            got = torch.tensor(encoder.embed([[5, 6, 7]], name, normalize=False)[0].vector)
            torch.testing.assert_close(got, want[name], atol=1e-5, rtol=1e-4)
            assert list(again) == [name]


def adapt_classifier():
    from commonweight import adapt

    return adapt.Classifier(encoders.bert()).eval()


def test_a_text_is_not_cut_to_less_than_its_frame():
    words = shop.tokenizer()
    words.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", pair="<bos> $A <eos> $B <eos>", special_tokens=[("<bos>", 1), ("<eos>", 2)]
    )
    with Encoder(encoders.host(encoders.bert()), tokenizer=words) as encoder:
        asked = lambda cut, pair=None: encoder.submit("vectors", [("w1 w2 w3", pair)], None, cut)[0].ids  # noqa: E731
        assert len(asked(3)) == len(asked(3, "w4 w5")) == 3 and len(asked(2)) == 2 and len(asked(9)) == 5
        for cut, pair in ((0, None), (1, None), (2, "w4 w5")):
            with pytest.raises(CommonweightError, match=f"cannot be cut to {cut} token"):
                asked(cut, pair)


@pytest.mark.parametrize("kind", ["T5EncoderModel", "T5ForConditionalGeneration"])
def test_the_encoder_of_a_t5_is_what_reads(tmp_path, kind):
    """Also where its folder holds nothing else: of that AutoModel makes a model with a decoder at random."""
    torch.manual_seed(3)
    config = tf.T5Config(
        d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2, vocab_size=served.VOCAB, pad_token_id=0
    )
    model = getattr(tf, kind)(config).eval()
    model.save_pretrained(tmp_path)
    with Encoder(tmp_path) as encoder:
        got = encoder.embed([[5, 6, 7]])[0]
    with torch.no_grad():
        want = model.get_encoder()(torch.tensor([[5, 6, 7]])).last_hidden_state[0].mean(0)
    torch.testing.assert_close(torch.tensor(got.vector), F.normalize(want, dim=-1), atol=2e-5, rtol=1e-4)
    with pytest.raises(
        CommonweightError, match=r"an encoder and a decoder, which|no language model can be loaded there"
    ):
        Engine(tmp_path)


def test_room_that_cannot_be_made_ends_nothing(monkeypatch, caplog):
    with Encoder(encoders.host(encoders.bert())) as encoder:

        def broken() -> None:
            raise OSError("no disk")

        monkeypatch.setattr(encoder.tenants, "trim", broken)
        assert [encoder.embed([[5, i]])[0].error for i in (6, 7)] == [None, None] and not encoder.closed
    assert "could not make room" in caplog.text
