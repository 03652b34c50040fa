"""Attention and feed-forward parts of a block as sites: found by structure, right with caches and checkpoints."""

import pytest
import torch
import transformers as tf

import commonweight as cw
from commonweight.host.experts import discover
from tests.laws.subjects import stir
from tests.models import answer, make

PARTS = {
    "llama": ("model.layers.1.mlp", "model.layers.1.self_attn"),
    "gpt2": ("transformer.h.1.mlp", "transformer.h.1.attn"),
    "bert": ("encoder.layer.1.ffn", "encoder.layer.1.attention"),
    "vit": ("layers.1.mlp", "layers.1.attention"),
    "moe": ("model.layers.1.mlp", "model.layers.1.self_attn"),
    "t5": ("decoder.block.1.layer.2.DenseReluDense", "decoder.block.1.layer.1.EncDecAttention"),
}
BY_CONFIG = {
    "roberta": ("encoder.layer.11.ffn", "encoder.layer.11.attention"),
    "opt": ("decoder.layers.11.ffn", "decoder.layers.11.self_attn"),
    "bart": ("decoder.layers.11.ffn", "decoder.layers.11.encoder_attn"),
    "modernbert": ("layers.21.mlp", "layers.21.attn"),
    "swin": ("encoder.layers.3.blocks.1.mlp", "encoder.layers.3.blocks.1.attention"),
    "albert": (
        "encoder.albert_layer_groups.0.albert_layers.0.feed_forward",
        "encoder.albert_layer_groups.0.albert_layers.0.attention",
    ),
}


def last(sites):
    return tuple([s.name for s in sites if s.kind == k][-1] for k in ("ffn", "attention"))


@pytest.mark.parametrize("kind", PARTS)
def test_where_the_parts_are(kind):
    assert last(cw.Host(make(kind)[0]).sites) == PARTS[kind]


@pytest.mark.parametrize("kind", BY_CONFIG)
def test_where_the_parts_of_other_families_are(kind):
    with torch.device("meta"):
        model = tf.AutoModel.from_config(tf.AutoConfig.for_model(kind))
    sites = discover(model)[2]
    assert last(sites) == BY_CONFIG[kind]
    names = [s.name for s in sites]
    assert len(names) == len(set(names))


def test_a_part_that_norms_its_own_sum_is_none():
    with torch.device("meta"):
        model = tf.AutoModel.from_config(tf.AutoConfig.for_model("xlnet", n_layer=2))
    assert not [s for s in discover(model)[1] if s.kind == "ffn"]


@pytest.mark.parametrize("kind", ["llama", "gpt2", "t5"])
def test_generation_with_a_cache_is_that_without(kind):
    model, batch = make(kind)
    host = cw.Host(model)
    for i, name in enumerate(("one", "two")):
        stir(host.add(name, "parallel", size=4, placement="both"), i, std=0.3)
    ids = batch["input_ids"]
    told = dict(attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=4, min_new_tokens=4)
    with host.route(["one", None, "two", "one"]):
        cached, plain = (model.generate(ids, use_cache=c, **told) for c in (True, False))
    assert torch.equal(cached, plain)
    with host.route("two"):
        assert torch.equal(
            model.generate(ids[2:3], **{**told, "attention_mask": told["attention_mask"][2:3]}), cached[2:3]
        )


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_checkpoints_give_the_same_gradients(kind, reentrant):
    found = []
    for checkpointed in (False, True):
        model, batch = make(kind)
        host = cw.Host(model)
        tenant = stir(host.add("t", "parallel", size=4, placement="both"))
        model.train()
        for m in model.modules():
            if isinstance(m, torch.nn.Dropout):
                m.p = 0.0
        if kind == "bert":
            for layer in model.encoder.layer:
                layer.attention.self.dropout.p = 0.0
        if checkpointed:
            model.activation_checkpointing_enable({"use_reentrant": reentrant})
            model.enable_input_require_grads()
        with host.route("t"):
            answer(model, batch).square().sum().backward()
        found.append([p.grad for p in tenant.parameters()])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


def test_a_part_and_a_layer_in_it_are_changed_by_two_tenants_in_one_batch():
    """A tenant of `output.dense`, where the part ends, beside one of the part itself."""
    model, batch = make("bert")
    host = cw.Host(model)
    stir(host.add("part", "parallel", size=4), std=0.3)
    stir(host.add("layer", "lora", sites="*.output.dense"), std=0.3)
    readers = ["part", "layer", None, "part"]
    with torch.no_grad():
        with host.route(readers):
            mixed = answer(model, batch)
        for i, name in enumerate(readers):
            with host.route(name):
                alone = answer(model, {k: v[i : i + 1] for k, v in batch.items()})
            torch.testing.assert_close(mixed[i : i + 1], alone, rtol=1e-4, atol=1e-5)
