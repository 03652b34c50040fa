"""The classifier: pooling written out, heads of tenants, mixed batches."""

import pytest
import torch
import transformers as tf

import commonweight as cw
from commonweight.adapt.classifier import decoder_only
from tests.laws.subjects import stir
from tests.models import make


def setup(kind="bert"):
    model, batch = make(kind)
    model = model if kind == "bert" else model.model
    mask = torch.ones_like(batch["input_ids"])
    mask[0, 3:] = 0
    mask[2, 1:] = 0
    return cw.Classifier(model).eval(), {**batch, "attention_mask": mask}


def test_mean_over_the_mask():
    model, batch = setup()
    hidden = model.encoder(**batch).last_hidden_state
    want = torch.stack([hidden[i, : int(m.sum())].mean(0) for i, m in enumerate(batch["attention_mask"])])
    torch.testing.assert_close(model(**batch).logits, want)
    assert model.config is model.encoder.config and model.pool == "mean"


@pytest.mark.parametrize("left", [False, True])
def test_a_decoder_gives_its_last_token(left):
    model, batch = setup("llama")
    assert model.pool == "last"
    if left:
        batch = {k: v.flip(1) for k, v in batch.items()}
    hidden = model.encoder(**batch).last_hidden_state
    last = [max(j for j, on in enumerate(m) if on) for m in batch["attention_mask"].tolist()]
    want = torch.stack([hidden[i, j] for i, j in enumerate(last)])
    torch.testing.assert_close(model(**batch).logits, want)


def test_which_models_are_decoders():
    assert decoder_only(tf.LlamaConfig()) and decoder_only(tf.GPT2Config())
    assert not decoder_only(tf.BertConfig()) and not decoder_only(tf.T5Config())
    assert decoder_only(tf.BertConfig(is_decoder=True))


def test_of_an_encoder_decoder_only_the_encoder():
    torch.manual_seed(0)
    model = cw.Classifier(
        tf.T5Model(tf.T5Config(d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, vocab_size=61))
    )
    assert model(torch.ones(2, 5, dtype=torch.long)).logits.shape == (2, 32)


def test_heads_belong_to_tenants_and_mixed_batches_pad_with_minus_infinity():
    model, batch = setup()
    host = cw.Host(model)
    assert [s.name for s in host.sites if s.kind == "head"] == ["head"]
    two, three = host.add("two", "lora", labels=["no", "yes"]), host.add("three", "probe", labels=3)
    stir(two), stir(three, 1)
    assert two.labels == ("no", "yes") and three.count() == 3 * 33
    route, labels = ["two", "three", "two", "three"], torch.tensor([1, 2, 0, 1])
    with host.route(route):
        out = model(**batch, labels=labels)
    assert out.logits.shape == (4, 3) and out.logits[0, 2] == float("-inf")
    assert out.loss.isfinite()
    out.loss.backward()
    for p in (*two.parameters(), *three.parameters()):
        assert p.grad is not None and p.grad.isfinite().all()
    losses = []
    for i, name in enumerate(route):
        with host.route(name), torch.no_grad():
            row = {k: v[i : i + 1] for k, v in batch.items()}
            one = model(**row, labels=labels[i : i + 1])
            torch.testing.assert_close(one.logits[0], out.logits[i, : one.logits.shape[1]])
            losses.append(one.loss)
    torch.testing.assert_close(torch.stack(losses).mean(), out.loss)


def test_the_encoder_may_run_in_bfloat16_and_logits_stay_float32():
    model, batch = setup()
    host = cw.Host(model.bfloat16())
    host.add("t", "lora", labels=2)
    with host.route("t"):
        assert model(**batch).logits.dtype == torch.float32
