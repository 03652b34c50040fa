"""A vocabulary that grows under its tenants."""

from __future__ import annotations

import pytest
import torch
import transformers as tf
from torch import nn

import commonweight as cw
from tests.laws.subjects import stir
from tests.methods.selective.test_tokens import IDS, llama
from tests.models import VOCAB, make

NEW = VOCAB + 5


def logits(host, readers, ids=IDS, **more):
    with torch.no_grad(), host.route(readers):
        return host.model(input_ids=ids, **more).logits


def gemma():
    torch.manual_seed(0)
    return tf.Gemma2ForCausalLM(
        tf.Gemma2Config(
            hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2,
            head_dim=8, vocab_size=VOCAB, pad_token_id=0, bos_token_id=1, eos_token_id=2, query_pre_attn_scalar=8,
        )
    ).eval()  # fmt: skip


def masked():
    torch.manual_seed(0)
    return tf.BertForMaskedLM(
        tf.BertConfig(
            hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4, vocab_size=VOCAB,
            max_position_embeddings=32,
        )
    ).eval()  # fmt: skip


def speech():
    return make("t5")[0]


BASES = {
    "untied": lambda: llama(False), "tied": lambda: llama(True), "soft caps": gemma, "bias": masked, "t5": speech,
}  # fmt: skip
TENANTS = {
    "lora": {"rank": 2},
    "lora on the table": {"method": "lora", "rank": 2, "sites": "embeddings|*_proj|*.q"},
    "whole": {"method": "lora", "rank": 2, "modules_to_save": ["embed_tokens", "shared", "word_embeddings"]},
    "full table": {"method": "full", "sites": "embeddings"},
}


def added(host, name, seed=0, method="lora", modules_to_save=None, **how):
    there = {n.rpartition(".")[2] for n, _ in host.model.named_modules()}
    modules = modules_to_save and [n for n in modules_to_save if n in there]
    return stir(host.add(name, method, seed=seed, modules_to_save=modules, **how), seed)


@pytest.mark.filterwarnings("ignore:.*neither called nor read")
@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("kind", TENANTS)
def test_tenants_stay_as_they_were(base, kind, tmp_path):
    """Alone, in a mixed batch, out of their files, on a base that grew before them or after."""
    more = {"decoder_input_ids": IDS.flip(0)} if base == "t5" else {}
    host = cw.Host(BASES[base]())
    tenant = added(host, "t", **TENANTS[kind])
    plain, before = logits(host, None, **more), logits(host, "t", **more)
    path = host.save("t", tmp_path / "t.safetensors")
    assert host.resize_vocabulary(NEW) == VOCAB
    other = added(host, "o", seed=1, rank=2, token_rows=[VOCAB, NEW - 1])
    assert (tenant.vocabulary, other.vocabulary) == (VOCAB, NEW)

    def same(found, want):
        torch.testing.assert_close(found[..., :VOCAB], want, rtol=1e-4, atol=1e-5)
        assert torch.isneginf(found[..., VOCAB:]).all()

    same(logits(host, "t", **more), before)
    same(logits(host, None, **more), plain)
    mixed = logits(host, ["t", "o", None, "t"], **more)
    same(mixed[0], before[0])
    same(mixed[2], plain[2])
    assert mixed[1].isfinite().all()
    again = cw.Host(BASES[base]())
    again.load("t", host.save("t", tmp_path / "later.safetensors"))
    torch.testing.assert_close(logits(again, "t", **more), before, rtol=1e-4, atol=1e-5)
    again.resize_vocabulary(NEW)
    assert again.load("late", path).vocabulary == VOCAB
    same(logits(again, "late", **more), before)


def test_words_of_a_tenant_come_with_its_file(tmp_path):
    """Two tenants have other words under the same numbers; both open on the base as it was."""
    host = cw.Host(llama(True))
    host.resize_vocabulary(NEW)
    ids = IDS.clone()
    ids[:, 1] = VOCAB
    want = {}
    for i, name in enumerate("ab"):
        added(host, name, seed=i, rank=2, token_rows=range(VOCAB, NEW))
        want[name] = logits(host, name, ids)
        host.save(name, tmp_path / name)
    assert not torch.allclose(want["a"], want["b"])
    again = cw.Host(llama(True))
    plain = logits(again, None)
    for name in "ab":
        again.load(name, tmp_path / name)
    mixed = logits(again, ["a", "b", "b", "a"], ids)
    for i, name in enumerate("abba"):
        torch.testing.assert_close(mixed[i], want[name][i], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(logits(again, None)[..., :VOCAB], plain)


def test_nobody_says_a_word_that_it_does_not_know():
    host = cw.Host(llama(False))
    added(host, "old", rank=2)
    host.resize_vocabulary(NEW)
    with torch.no_grad():
        host.model.lm_head.weight[VOCAB:] *= 100
    assert added(host, "new", rank=2, token_rows={"lm_head": [VOCAB]}).vocabulary == NEW
    for readers in (None, "old", ["old", None, "old", None]):
        with torch.no_grad(), host.route(readers):
            out = host.model.generate(IDS, max_new_tokens=4, do_sample=True)
        assert out.max() < VOCAB


def test_the_loss_of_a_tenant_that_was_there_does_not_move():
    host = cw.Host(llama(False))
    tenant = added(host, "t", rank=2)

    def step():
        for p in tenant.parameters():
            p.grad = None
        with host.route("t"):
            loss = host.model(IDS, labels=IDS).loss
        loss.backward()
        return loss.detach(), [p.grad.clone() for p in tenant.parameters()]

    loss, grads = step()
    host.resize_vocabulary(NEW)
    again, moved = step()
    torch.testing.assert_close(again, loss)
    for a, b in zip(moved, grads):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_what_the_base_would_have_to_bring_is_asked_for(tmp_path):
    host = cw.Host(llama(False))
    host.resize_vocabulary(NEW)
    host.add("t", "lora", rank=2, token_rows=range(VOCAB, NEW))  # the head's new rows are the base's
    path = host.save("t", tmp_path / "t")
    again = cw.Host(llama(False))
    with pytest.raises(cw.CommonweightError, match="made for 66 tokens, and this base has 61: 5 rows of the table or"):
        again.load("t", path)
    assert again.base.vocabulary == VOCAB and not len(again)
    again.resize_vocabulary(NEW)
    again.load("t", path)


def test_by_hand_the_new_entries_are_the_models_own():
    host = cw.Host(llama(False))
    added(host, "t", rank=2)
    host.model.resize_token_embeddings(NEW, mean_resizing=False)
    assert logits(host, None).isfinite().all()
    assert torch.isneginf(logits(host, "t")[..., VOCAB:]).all()
    assert added(host, "u", rank=2).vocabulary == NEW


@pytest.mark.parametrize("size", [VOCAB - 1, "70", True])
def test_sizes_that_cannot_be(size):
    host = cw.Host(llama(False))
    with pytest.raises(cw.CommonweightError, match="the vocabulary has 61 entries; wanted a whole number above"):
        host.resize_vocabulary(size)
    with pytest.raises(cw.CommonweightError, match="has no table of tokens"):
        cw.Host(nn.Sequential(nn.Linear(4, 4))).resize_vocabulary(5)
    host.base.limit.held = "an engine"
    with pytest.raises(cw.CommonweightError, match="an engine is at work on this model; do it before"):
        host.resize_vocabulary(NEW)
    assert host.resize_vocabulary(VOCAB) == VOCAB
