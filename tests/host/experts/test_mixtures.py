"""Tenants on experts and routers: every layout and implementation of transformers, alone and in mixed batches."""

from __future__ import annotations

import copy
import pickle
from functools import partial

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import commonweight as cw
from commonweight.host.experts import forms
from tests.laws.subjects import small, stir
from tests.mixtures import MIXTURES, mixture
from tests.models import answer

IMPLEMENTATIONS = ["eager", "grouped_mm", "batched_mm"]
ON = "*.experts.*|*.router|*.gate|*.router.layer"


def hosted(kind="qwen3_moe", implementation=None, methods=("lora", "dora"), on=ON, layers=None):
    model, batch = mixture(kind, implementation)
    if layers is not None:
        model.model.layers = model.model.layers[:layers]
    host = cw.Host(model)
    for i, name in enumerate(methods):
        options = {"rank": 4} if name in ("lora", "dora") else {}
        stir(host.add(name, name, sites=on, **options), i)
    return host, batch


def routed(host, route, batch):
    with torch.no_grad(), host.route(route):
        return answer(host.model, batch)


@pytest.mark.parametrize("kind", MIXTURES)
def test_experts_and_routers_are_sites_and_a_tenant_is_its_merged_weights(kind):
    host, batch = hosted(kind)
    sites = {s.name: s for s in host.sites}
    experts = [s for s in sites.values() if s.kind == "expert"]
    layers = {s.name.split(".experts")[0] for s in experts}
    roles = {"up", "down"} | ({"gate"} if kind == "dbrx" else set())
    assert len(experts) == len(roles) * 4 * len(layers) and {s.role for s in experts} == roles
    assert all(s.bias == (kind == "gpt_oss") for s in experts)
    for site in experts:
        assert host.weight(site.name).shape == (site.out, site.inp)
    plain, _ = mixture(kind)
    for name in ("lora", "dora"):
        assert {s.kind for s in host[name].sites} >= {"expert", "router"}
        plain.load_state_dict(mixture(kind)[0].state_dict())
        assert not plain.load_state_dict(host.merged(name), strict=False).unexpected_keys
        with torch.no_grad():
            torch.testing.assert_close(routed(host, name, batch), answer(plain, batch), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", MIXTURES)
def test_a_row_of_a_mixed_batch_is_as_alone(kind):
    host, batch = hosted(kind, methods=("lora", "dora", "ia3"))
    alone = {n: routed(host, n, batch) for n in (None, "lora", "dora", "ia3")}
    for route in (["dora", None, "lora", "dora"], ["lora", "ia3", "lora", "ia3"]):
        mixed = routed(host, route, batch)
        assert not host.base.model.forward.apart, "it ran reader by reader"
        for i, name in enumerate(route):
            torch.testing.assert_close(mixed[i], alone[name][i], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("kind", ["mixtral", "gpt_oss"])
def test_the_implementations_are_equal(kind, implementation):
    methods = ("lora", "dora", "ia3", "full", "bottleneck")
    want, batch = hosted(kind, "eager", methods, "*.experts.*")
    host, _ = hosted(kind, implementation, methods, "*.experts.*")
    for route in ("lora", "dora", "ia3", "full", "bottleneck", ["full", "lora", None, "bottleneck"]):
        torch.testing.assert_close(routed(host, route, batch), routed(want, route, batch), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("kind", ["qwen3_moe", "llama4", "gpt_oss"])
def test_gradients_are_those_of_changed_weights(kind, implementation, monkeypatch):
    host, batch = hosted(kind, None if kind == "llama4" else implementation)
    host.model.train()
    found = {}
    for form in ("ours", "whole"):
        if form == "whole":
            monkeypatch.setattr(forms, "mixed", lambda module: False)
            monkeypatch.setattr(forms, "spread", lambda module: False)
        for name in ("lora", "dora"):
            with host.route(name):
                answer(host.model, batch).square().mean().backward()
            for n, p in host[name].named_parameters():
                if p.grad is not None:
                    found[form, name, n] = p.grad.clone()
                p.grad = None
    assert any("down_proj" in n for _, _, n in found)
    for form, name, n in list(found):
        if form == "ours":
            torch.testing.assert_close(found[form, name, n], found["whole", name, n], rtol=1e-3, atol=1e-6)


def test_tokens_padding_and_generation():
    host, batch = hosted("mixtral", methods=("lora", "ia3"))
    alone = {n: routed(host, n, batch) for n in (None, "lora", "ia3")}
    numbers = torch.full((4, 6), -1)
    numbers[0], numbers[3] = host["lora"].number, host["ia3"].number
    mixed = routed(host, numbers, batch)
    for i, name in enumerate(("lora", None, None, "ia3")):
        torch.testing.assert_close(mixed[i], alone[name][i], rtol=1e-4, atol=1e-5)
    for side in ("left", "right"):
        mask = torch.ones(4, 6, dtype=torch.long)
        mask[1, :2] = 0
        ids = batch["input_ids"] if side == "left" else batch["input_ids"].flip(1)
        padded = {"input_ids": ids, "attention_mask": mask if side == "left" else mask.flip(1)}
        padded["position_ids"] = (padded["attention_mask"].cumsum(1) - 1).clamp_min(0)
        whole = routed(host, ["lora", "ia3", None, "lora"], padded)
        kept = {k: v[1:2, 2:] if side == "left" else v[1:2, :-2] for k, v in padded.items()}
        one = routed(host, "ia3", kept)
        there = whole[1:2, 2:] if side == "left" else whole[1:2, :-2]
        torch.testing.assert_close(there, one, rtol=1e-4, atol=1e-5)
    options = {"max_new_tokens": 4, "do_sample": False, "num_beams": 2}
    names = ["lora", None, "ia3", "lora"]
    with host.route(names):
        together = host.model.generate(batch["input_ids"], **options)
    for i, name in enumerate(names):
        with host.route(name):
            one = host.model.generate(batch["input_ids"][i : i + 1], **options)[0]
        assert torch.equal(together[i][: len(one)], one)


def test_checkpoints_keep_the_route():
    host, batch = hosted()
    host.model.train()
    grads = []
    for on in (False, True):
        if on:
            host.model.activation_checkpointing_enable()
        with host.route(["lora", "dora", None, "lora"]):
            loss = answer(host.model, batch).square().mean()
        loss.backward()
        grads.append({n: p.grad.clone() for n, p in host["lora"].named_parameters() if p.grad is not None})
        for p in (*host["lora"].parameters(), *host["dora"].parameters()):
            p.grad = None
    assert grads[0].keys() == grads[1].keys()
    for n in grads[0]:
        torch.testing.assert_close(grads[0][n], grads[1][n])


def test_a_checkpoint_of_torch_keeps_the_route_of_experts():
    found = []
    for on in (False, True):
        host, batch = hosted(methods=())
        stir(host.add("lora", "lora", rank=4, sites="*.experts.*"))
        block = host.model.model.layers[1].mlp
        if on:
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)
        with host.route("lora"):
            loss = answer(host.model, batch).square().mean()
        loss.backward()
        found.append([p.grad for p in host["lora"].parameters()])
    torch.testing.assert_close(found[1], found[0])


def test_copies_pickles_and_close():
    host, batch = hosted()
    want, base = routed(host, "lora", batch), routed(host, None, batch)
    for other in (copy.deepcopy(host), pickle.loads(pickle.dumps(host))):
        torch.testing.assert_close(routed(other, "lora", batch), want)
        with torch.no_grad():
            for p in other["lora"].parameters():
                p.zero_()
        assert not torch.allclose(routed(other, "lora", batch), want)
        torch.testing.assert_close(routed(host, "lora", batch), want)
    experts = host.model.model.layers[0].mlp.experts
    host.close()
    assert "forward" not in vars(experts)
    with torch.no_grad():
        assert torch.equal(answer(host.model, batch), base)


def test_half_precision_and_unaligned_ranks():
    """A rank of 3 fits no stride of the grouped product."""
    host, batch = hosted()
    stir(host.add("odd", "lora", rank=3, sites="*.experts.*"), std=0.05)
    want = routed(host, ["odd", "lora", None, "odd"], batch)
    host.model.bfloat16()
    got = routed(host, ["odd", "lora", None, "odd"], batch)
    assert (got.float() - want).abs().max() < 0.1 * want.abs().max()


def test_what_is_shared_is_shared_across_experts():
    host, _ = hosted(methods=())
    for method in ("mos", "vb-lora", "vera", "lotr"):
        tenant = host.add(method, method, sites="*.experts.*", **small(method))
        readers = tenant.plan.readers()
        assert max(n for p, n in readers.items() if p in tenant.pools) >= 8


@pytest.mark.parametrize("implementation", ["grouped_mm", pytest.param("eager", marks=pytest.mark.slow)])
def test_a_compiled_model_answers_as_the_tenants(implementation):
    host, batch = hosted("qwen3_moe", implementation, layers=1)  # each layer is traced by itself, for seconds
    routes = (["dora", None, "lora", "dora"], None)
    want = [routed(host, r, batch) for r in routes]
    torch._dynamo.reset()
    compiled = torch.compile(host.model, backend="eager")
    for route, expected in zip(routes, want):
        with torch.no_grad(), host.route(route):
            torch.testing.assert_close(compiled(**batch).logits, expected, rtol=1e-4, atol=1e-5)
    torch._dynamo.reset()


@pytest.mark.parametrize("kind", ["qwen3_moe", "mixtral"])
def test_files_a_store_fingerprints_and_a_module(kind, tmp_path):
    host, batch = hosted(kind, methods=("lora",))
    stir(host.add("mos", "mos", **small("mos")))
    before = host.fingerprint
    store = cw.Commons(tmp_path / "store")
    for name in ("lora", "mos"):
        want = routed(host, name, batch)
        other = cw.Host(mixture(kind)[0])
        assert other.fingerprint == before
        other.load("a", host.save(name, tmp_path / "t.safetensors"))
        store.publish(host, name)
        other.load_from(store, name, as_="b")
        for again in ("a", "b"):
            torch.testing.assert_close(routed(other, again, batch), want)
        module = other.module("a")
        optimiser = torch.optim.SGD(module.parameters(), lr=0.1)
        module(**batch, labels=batch["input_ids"]).loss.backward()
        optimiser.step()
        assert (routed(other, "a", batch) - want).abs().max() > 1e-4
        torch.testing.assert_close(routed(other, "b", batch), want)
    assert host.fingerprint == before


@pytest.mark.parametrize("format", ["kohya", "diffusers", "gguf", "mlx"])
def test_a_format_without_names_for_experts_is_refused(format, tmp_path):
    host, _ = hosted("gpt_oss" if format in ("gguf", "mlx") else "qwen3_moe", methods=("lora",), layers=1)
    host.model.config.model_type = "unheard_of"
    with pytest.raises(cw.CommonweightError, match=rf"{format}.* the experts and routers .*(Export|export)"):
        host.export("lora", tmp_path / "out", format)
    assert not list(tmp_path.iterdir())
