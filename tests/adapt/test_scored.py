"""Logits are made where they are scored alone: the same numbers, whatever the model and the tenant."""

import pytest
import torch
import transformers as tf

from commonweight import Host
from commonweight.adapt import open_host
from commonweight.adapt.tasks import scored
from tests.laws.subjects import stir

SIZE = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, vocab_size=44)


def batch(rows=5, length=9, seed=0):
    """Ids (B, T), their mask, and labels: of the first row none is scored, of the second all."""
    g = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, 44, (rows, length), generator=g)
    labels = torch.where(torch.rand(rows, length, generator=g) < 0.4, ids, scored.IGNORE)
    labels[0], labels[1] = scored.IGNORE, ids[1]
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, labels


def plainly(model, inputs, labels):
    logits = model(**inputs).logits[:, -labels.shape[1] :][:, :-1]
    kept = labels[:, 1:] != scored.IGNORE
    return torch.nn.functional.cross_entropy(logits[kept].float(), labels[:, 1:][kept], reduction="sum").item()


def causal(**more):
    return tf.LlamaForCausalLM(tf.LlamaConfig(**SIZE, num_key_value_heads=2, **more))


MODELS = {
    "llama": causal,
    "tied": lambda: causal(tie_word_embeddings=True),
    "caps its logits": lambda: tf.Gemma2ForCausalLM(
        tf.Gemma2Config(**SIZE, num_key_value_heads=2, head_dim=8, final_logit_softcapping=0.5)
    ),
    "scales its logits": lambda: tf.GraniteForCausalLM(
        tf.GraniteConfig(**SIZE, num_key_value_heads=2, logits_scaling=3.0)
    ),
    "gpt2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=44)),
}


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("piece", [1, 100, scored.PIECE])
def test_the_same_number(kind, piece, monkeypatch):
    monkeypatch.setattr(scored, "PIECE", piece)
    torch.manual_seed(0)
    model = MODELS[kind]().eval()
    inputs, labels = batch()
    wanted = plainly(model, inputs, labels)
    assert scored.loss(model, inputs, labels).item() == pytest.approx(wanted, rel=1e-5)
    assert scored.measure(model, inputs, labels).nll == pytest.approx(wanted, rel=1e-5)
    assert not scored.output_layer(model)._forward_pre_hooks
    with torch.no_grad():
        likeliest = model(**inputs).logits[:, :-1].argmax(-1)
    assert scored.measure(model, inputs, labels).right == int((likeliest == labels[:, 1:]).sum())


def test_a_head_is_given_rows_that_lie_together():
    """torch multiplies a slice of several rows one by one: in bfloat16 hundreds of times slower."""
    model, (inputs, labels) = causal().eval(), batch()
    seen = []
    model.lm_head.register_forward_pre_hook(lambda module, given: seen.append(given[0].is_contiguous()))
    scored.measure(model, inputs, labels)
    assert len(seen) > 1 and all(seen)


def test_nothing_scored():
    inputs, labels = batch()
    assert scored.measure(causal().eval(), inputs, torch.full_like(labels, scored.IGNORE)) == (0, 0)


def test_a_model_that_does_not_say_where_its_head_is(monkeypatch):
    model = causal().eval()
    inputs, labels = batch()
    wanted = plainly(model, inputs, labels)
    monkeypatch.setattr(model, "get_output_embeddings", lambda: None)
    assert scored.loss(model, inputs, labels).item() == pytest.approx(wanted, rel=1e-5)
    assert scored.measure(model, inputs, labels).nll == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("method", ["lora", "ia3"])
def test_a_tenant_at_the_head_itself(method):
    """ia3 there changes the head's input: once, whether logits are made at once or in pieces."""
    torch.manual_seed(0)
    host = Host(causal().eval())
    sites = "lm_head|*.q_proj"
    a, b = (host.add(n, method, sites=sites, seed=i) for i, n in enumerate("ab"))
    drawn = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in [*a.parameters(), *b.parameters()]:
            p += 0.3 * torch.randn(p.shape, generator=drawn)
    inputs, labels = batch()
    with host.route("a"):
        wanted = plainly(host.model, inputs, labels)
        assert scored.measure(host.model, inputs, labels).nll == pytest.approx(wanted, rel=1e-5)
    with host.route("b"):
        assert plainly(host.model, inputs, labels) != pytest.approx(wanted, rel=1e-3)
    with host.route(["a", "b", "a", None, "b"]):
        wanted = plainly(host.model, inputs, labels)
        assert scored.loss(host.model, inputs, labels).item() == pytest.approx(wanted, rel=1e-5)


def test_few_logits_at_a_time(llama, monkeypatch):
    monkeypatch.setattr(scored, "PIECE", 44 * 5 * 2)
    host = open_host(llama, "lm", dtype="float32")
    most = []
    scored.output_layer(host.model).register_forward_hook(lambda m, a, y: most.append(y.numel()))
    inputs, labels = batch()
    scored.measure(host.model, inputs, labels)
    assert max(most) <= scored.PIECE


@pytest.mark.parametrize("readers", ["falls", "even", "activated", ["falls", "activated", None, "even", "falls"]])
def test_a_head_that_goes_by_more_than_it_is_given(readers):
    """By states from before the last norm, and by where an invocation stands: of the tokens that are picked."""
    host = Host(causal().eval())
    for name, method, options in (
        ("falls", "pema", {"rank": 4, "alpha": 4.0, "length": 5, "invocation": (5, 6)}),
        ("even", "pema", {"rank": 4, "alpha": 4.0}),
        ("activated", "lora", {"rank": 3, "invocation": (5, 6), "sites": "lm_head"}),
    ):
        stir(host.add(name, method, **options))
    inputs, labels = batch()
    inputs["input_ids"][:, 2:4] = torch.tensor([5, 6])
    with torch.no_grad(), host.route(readers):
        wanted = plainly(host.model, inputs, labels)
        assert scored.loss(host.model, inputs, labels).item() == pytest.approx(wanted, rel=1e-5)
        assert scored.measure(host.model, inputs, labels).nll == pytest.approx(wanted, rel=1e-5)
