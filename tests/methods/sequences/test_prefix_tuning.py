"""Prefix tuning against attention written out on the model's own weights."""

import copy

import pytest
import torch

import commonweight as cw
from tests.laws.subjects import stir
from tests.models import answer, make

SMALL = {"tokens": 5}
VARIANTS = [{"projection": 6}]


@pytest.mark.parametrize("projection", [0, 6])
def test_formula_in_one_layer(projection):
    """BERT's attention by hand: softmax(q [P_K; K]^T / sqrt(d)) [P_V; V], with nothing but linear layers of the model;
    tokens stand 5 positions further on."""
    model, batch = make("bert")
    host = cw.Host(model)
    t = stir(host.add("t", "prefix-tuning", tokens=5, projection=projection))
    at = model.encoder.layer[0].attention.self
    name = "encoder.layer.0.attention.self.prefix"
    if projection:
        h = torch.tanh(t.pools["prefix.E"] @ t.pools["prefix.W1"].T + t.pools["prefix.b1"])
        both = h @ t.pools[f"{name}.W2"].T + t.pools[f"{name}.b2"]
        P = torch.stack([both[:, :32], both[:, 32:]])
    else:
        P = t.pools[f"{name}.P"]
    got = []
    handle = at.register_forward_hook(lambda m, args, y: got.append((args[0], y[0])))
    with torch.no_grad(), host.route("t"):
        answer(model, batch)
    handle.remove()
    x, y = got[0]
    with torch.no_grad():
        q, k, v = at.query(x), at.key(x), at.value(x)
        k, v = (torch.cat([p.expand(4, -1, -1), z], 1) for p, z in zip(P, (k, v)))
        q, k, v = (z.view(4, -1, 4, 8).transpose(1, 2) for z in (q, k, v))
        want = (torch.softmax(q @ k.mT / 8**0.5, -1) @ v).transpose(1, 2).reshape(4, 6, 32)
    torch.testing.assert_close(y, want, rtol=1e-5, atol=1e-6)
    embedded = model.embeddings(**batch, position_ids=torch.arange(5, 11)[None])
    torch.testing.assert_close(x, embedded, rtol=0, atol=0)


def test_a_decoders_prefix_is_a_cache_that_is_filled_before():
    """The living reference: transformers' own cache with the prefix's keys and values in it."""
    from transformers import DynamicCache

    model, batch = make("llama")
    plain = copy.deepcopy(model)
    host = cw.Host(model)
    t = stir(host.add("t", "prefix-tuning", tokens=5))
    cache = DynamicCache()
    for i, P in enumerate(t.pools.values()):
        k, v = (p.detach().view(5, 2, 8).transpose(0, 1).expand(4, -1, -1, -1) for p in P)
        cache.update(k, v, i)
    with torch.no_grad(), host.route("t"):
        torch.testing.assert_close(answer(model, batch), plain(**batch, past_key_values=cache).logits)


@pytest.mark.parametrize("options", [{"num_beams": 3}, {"cache_implementation": "static", "disable_compile": True}])
def test_generation_in_a_mixed_batch(options):
    model, batch = make("llama")
    host = cw.Host(model)
    host.add("five", "prefix-tuning", tokens=5)
    host.add("two", "prefix-tuning", tokens=2, sites="*.1.*")

    def generate(route, ids):
        with host.route(route):
            return model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, do_sample=False, **options
            ).tolist()

    ids, route = batch["input_ids"], ["five", None, "two", "five"]
    assert generate(route, ids) == [generate(r, ids[i : i + 1])[0] for i, r in enumerate(route)]


def test_the_network_goes_when_it_is_trained():
    model, batch = make("gpt2")
    host = cw.Host(model)
    stir(host.add("t", "prefix-tuning", tokens=5, projection=6))
    with torch.no_grad(), host.route("t"):
        want = answer(model, batch)
    small = host.compact("t")
    assert small.config == cw.methods.PrefixTuning(tokens=5) and small.count() == 2 * 2 * 5 * 32
    with torch.no_grad(), host.route("t"):
        torch.testing.assert_close(answer(model, batch), want)


def test_beside_a_parallel_adapter_it_is_another_tenants_row():
    model, batch = make("llama")
    host = cw.Host(model)
    stir(host.add("p", "prefix-tuning", tokens=3))
    stir(host.add("a", "parallel", size=4))
    with torch.no_grad():
        with host.route(["p", "a", "a", "p"]):
            mixed = answer(model, batch)
        for i, name in enumerate(("p", "a", "a", "p")):
            with host.route(name):
                torch.testing.assert_close(
                    mixed[i : i + 1], answer(model, {"input_ids": batch["input_ids"][i : i + 1]})
                )
