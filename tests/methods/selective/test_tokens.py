"""Trained entries of the vocabulary, against PEFT's trainable tokens; tied heads follow their table."""

import pytest
import torch
import transformers as tf

import commonweight as cw
from tests.laws.subjects import stir
from tests.models import VOCAB, B, answer, make

SMALL = {"tokens": tuple(range(3, VOCAB))}
MODEL = "llama"


def llama(tied: bool, vocabulary: int = VOCAB):
    torch.manual_seed(0)
    config = tf.LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=VOCAB, pad_token_id=0, bos_token_id=1, eos_token_id=2, tie_word_embeddings=tied,
    )  # fmt: skip
    model = tf.LlamaForCausalLM(config).eval()
    if vocabulary != VOCAB:
        model.resize_token_embeddings(vocabulary, mean_resizing=False)
    return model


IDS = torch.randint(3, VOCAB, (B, 7), generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize("tied", [False, True])
def test_only_its_entries_move_and_a_tied_head_moves_with_them(tied):
    model = llama(tied)
    host = cw.Host(model)
    tenant = host.add("t", "tokens", tokens=(5, 9))
    assert tenant.count() == 2 * 32
    assert set(tenant.table) == {"model.embed_tokens", "lm_head"} if tied else {"model.embed_tokens"}
    stir(tenant)
    merged = host.merged("t")
    assert set(merged) == {f"{n}.weight" for n in tenant.table}
    for w in merged.values():
        moved = (w != model.model.embed_tokens.weight).any(1).nonzero().flatten().tolist()
        assert moved == [5, 9]
    plain = llama(tied)
    plain.load_state_dict(merged, strict=False)
    with torch.no_grad(), host.route("t"):
        torch.testing.assert_close(model(IDS).logits, plain(IDS).logits)


@pytest.mark.parametrize("method, options", [("lora", {"rank": 3}), ("full", {}), ("ia3", {}), ("vera", {"rank": 4})])
def test_a_change_of_a_tied_table_is_one_of_the_head(method, options):
    """Whatever the method; a pattern that names both changes the weight once."""
    model = llama(True)
    host = cw.Host(model)
    tenant = stir(host.add("t", method, sites="*embed_tokens|lm_head", **options))
    assert {u.site for u in tenant.plan.uses} == {"model.embed_tokens"}
    plain = llama(True)
    plain.load_state_dict(host.merged("t"), strict=False)
    assert plain.lm_head.weight is plain.model.embed_tokens.weight
    with torch.no_grad():
        with host.route("t"):
            alone = model(IDS).logits
        torch.testing.assert_close(alone, plain(IDS).logits, rtol=1e-4, atol=1e-5)
        with host.route(["t", None, "t", None]):
            mixed = model(IDS).logits
        torch.testing.assert_close(mixed[0], alone[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(mixed[1], model(IDS).logits[1], rtol=1e-4, atol=1e-5)


def test_a_head_alone_is_no_change_of_the_table_and_cannot_be_merged():
    model = llama(True)
    host = cw.Host(model)
    stir(host.add("t", "lora", sites="lm_head", rank=2))
    with pytest.raises(cw.CommonweightError, match="tied"):
        host.merged("t")


def test_added_tokens_are_the_tenants_whatever_the_base_has_there(tmp_path):
    model = llama(False, VOCAB + 2)
    host = cw.Host(model)
    stir(host.add("t", "tokens", tokens=(VOCAB, VOCAB + 1)))
    path = host.save("t", tmp_path / "t.safetensors")
    ids = torch.tensor([[4, VOCAB, 7, VOCAB + 1]])
    with torch.no_grad(), host.route("t"):
        want = model(ids).logits
    other = llama(False, VOCAB + 2)
    with torch.no_grad():  # new rows are random in every process
        other.model.embed_tokens.weight[VOCAB:].normal_()
    again = cw.Host(other)
    again.load("t", path, check_base=False)
    with torch.no_grad(), again.route("t"):
        torch.testing.assert_close(other(ids).logits, want)


def test_wrong_tokens_are_refused_by_name():
    host = cw.Host(llama(False))
    wrong = {(VOCAB,): "resize_vocabulary", (3, 3): "each once", (-1,): "0 or more"}
    for tokens, says in wrong.items():
        with pytest.raises(cw.CommonweightError, match=says):
            host.add("t", "tokens", tokens=tokens)
    mlp, _ = make("mlp")
    with pytest.raises(cw.CommonweightError, match="reads sites of kind embedding"):
        cw.Host(mlp).add("t", "tokens", tokens=(3,))


def test_a_head_has_entries_too():
    model, batch = make("llama")
    host = cw.Host(model)
    tenant = host.add("t", "tokens", sites="lm_head", tokens=(4, 6))
    with torch.no_grad():
        base = answer(model, batch)
        with host.route("t"):
            torch.testing.assert_close(answer(model, batch), base)
        stir(tenant)
        with host.route("t"):
            moved = answer(model, batch)
    assert (moved != base).any(0).any(0).nonzero().flatten().tolist() == [4, 6]
