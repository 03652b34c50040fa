"""The laws of the design, over every registered method."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache

import pytest
import torch

import commonweight as cw
from commonweight.address import fold
from commonweight.core import Rng
from commonweight.host.tenant import Derive
from tests.laws.subjects import METHODS, can, model_of, pairs, reached, small, stir, variants
from tests.models import KINDS, answer, make

SITES = [
    cw.Site(f"layers.{i}.{n}", o, 32, "linear", r)
    for i in range(3)
    for n, o, r in (("q", 32, "query"), ("v", 16, "value"), ("down", 32, "down"))
]
SITES += [cw.Site(f"layers.{i}", 32, 32, "block") for i in range(3)] + [
    cw.Site(f"layers.{i}.norm", 32, 1, "norm") for i in range(3)
]
SITES += [cw.Site(f"layers.0.experts.up[{e}]", 32, 32, "expert", "up", False) for e in range(2)]
SITES += [
    cw.Site(f"layers.{i}.{n}", 32, 32, k, "", False)
    for i in range(3)
    for n, k in (("attn", "attention"), ("mlp", "ffn"))
]
SITES += [cw.Site(f"layers.{i}.attn.prefix", 16, 8, "prefix", "", False) for i in range(3)]
SITES += [
    cw.Site("embed.prompt", 32, 32, "prompt", "", False),
    cw.Site("embed.positions", 32, 1, "positions", "", False),
]
SITES += [cw.Site(f"layers.{i}.attn.aside", 4, 32, "aside", "", False) for i in range(3)]
SITES += [cw.Site(f"layers.{i}.mixer.state", 32, 4, "state", "", False) for i in range(3)]
SITES += [cw.Site("embed", 32, 64, "embedding", "", False)]
SITES += [cw.Site("layers.trunk", 32, 4 * 32 + 1, "trunk", "", False)]
SITES += [cw.Site("layers.queries", 32, 3 * 32, "queries", "", False)]


class FakeBase:
    def weight(self, site):
        s = next(s for s in SITES if s.name == site)
        return Rng(7, site).normal((s.out, s.inp))

    def svd(self, site, rounded=False):
        return Derive(self.weight).svd(site, rounded)


@pytest.mark.parametrize("method", METHODS)
def test_addresses_are_linear_and_fold_is_the_adjoint(method):
    plan = cw.plan(method, SITES, **small(method))
    values = {n: p.init(p.shape, Rng(0, n), FakeBase()).to(getattr(torch, p.dtype)) for n, p in plan.pools.items()}
    for use in plan.uses:
        for read in use.reads.values():
            first, *coef = (values[p] for p in read.pools)
            p, q = torch.randn_like(first.double()), torch.randn_like(first.double())
            coef = [c.double() if c.is_floating_point() else c for c in coef]
            at = read.address
            both = at(2.0 * p - 3.0 * q, *coef)
            torch.testing.assert_close(both, 2.0 * at(p, *coef) - 3.0 * at(q, *coef))
            s = torch.randn_like(both)
            torch.testing.assert_close((both * s).sum(), ((2.0 * p - 3.0 * q) * fold(at, p.shape, s, *coef)).sum())


@pytest.mark.parametrize("method", METHODS)
def test_a_plan_is_data(method):
    plan = cw.plan(method, SITES, seed=3, **small(method))
    again = cw.Plan.from_json(plan.to_json())
    assert again == plan and again.digest() == plan.digest()
    assert json.loads(plan.to_json())["seed"] == 3


@pytest.mark.parametrize("method", METHODS)
def test_a_method_says_whether_tenants_can_share_its_pools(method):
    pools = [p for options in variants(method) for p in cw.plan(method, SITES, **options).pools.values()]
    assert any(p.scope == "shared" for p in pools) == bool(cw.methods.get(method).common)


@pytest.mark.parametrize("method", METHODS)
def test_every_pool_is_read_and_every_read_is_a_pool(method):
    plan = cw.plan(method, SITES, **small(method))
    assert set(plan.readers()) == set(plan.pools)


@pytest.mark.parametrize(("method", "kind"), pairs([*KINDS]))
def test_forms_agree_and_a_fresh_tenant_changes_nothing(method, kind):
    model, batch = make(kind)
    host = cw.Host(model)
    about = cw.methods.get(method)
    if not can(method, host):
        with pytest.raises(cw.CommonweightError, match="sites of kind"):
            host.add("t", method, **small(method))
        return
    with torch.no_grad():
        base = answer(model, batch)
        tenant = host.add("t", method, **small(method))
        with host.route("t"):
            fresh = answer(model, batch)
        if about.fresh == "exact":
            torch.testing.assert_close(fresh, base, rtol=1e-5, atol=2e-6)
        stir(tenant)
        with host.route("t"):
            moved = answer(model, batch)
        if tenant.count():
            assert (moved - base).abs().max() > 1e-4, "a stirred tenant does nothing"
        torch.testing.assert_close(answer(model, batch), base, rtol=0, atol=0)
        if any(getattr(u.bind, "weight", None) is None for u in tenant.plan.uses):
            with pytest.raises(cw.CommonweightError, match="cannot be merged"):
                host.merged("t")
            return
        merged = host.merged("t")
        plain, _ = make(kind)
        missing = plain.load_state_dict(merged, strict=False)
        assert not missing.unexpected_keys
        torch.testing.assert_close(answer(plain, batch), moved, rtol=1e-4, atol=1e-5)


@cache
def beside(kind, i, name):
    """Row i where no tenant of the method is: of the plain model, or of the LoRA that is beside the method's."""
    model, batch = make(kind)
    if name is None:
        return one(model, batch, i)
    host = cw.Host(model)
    stir(host.add(name, "lora", rank=3), 3)
    with host.route(name):
        return one(model, batch, i)


@torch.no_grad()
def one(model, batch, i):
    return answer(model, {k: v[i : i + 1] for k, v in batch.items()})


@pytest.mark.parametrize(("method", "kind"), pairs(["llama", "gpt2", "bert", "t5", "moe", "mlp"]))
def test_a_row_in_a_mixed_batch_is_that_row_alone(method, kind):
    model, batch = make(kind)
    host = cw.Host(model)
    if not can(method, host):
        return
    stir(host.add("one", method, seed=1, **small(method)), 1)
    stir(host.add("two", method, seed=2, **small(method)), 2)
    stir(host.add("lora", "lora", rank=3), 3)

    @cache
    def alone(i, name):
        if name not in ("one", "two"):
            return beside(kind, i, name)
        with host.route(name):
            return one(model, batch, i)

    routes = ["lora", "one", "two", None], ["one", None, "two", "one"], ["two", "one", "two", "one"]
    for route in routes if kind in ("llama", "bert") else routes[:1]:
        with torch.no_grad(), host.route(route):
            mixed = answer(model, batch)
        for i, name in enumerate(route):
            torch.testing.assert_close(mixed[i : i + 1], alone(i, name), rtol=1e-4, atol=1e-5)


IN_FRONT = [m for m in METHODS if {*cw.methods.get(m).kinds} & {"prefix", "prompt"}]


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
@pytest.mark.parametrize("method", IN_FRONT)
def test_a_tenant_in_front_of_its_rows_changes_no_other_row(method, kind):
    """Whatever it holds: with rows padded on both sides, and from a cache as in one pass."""
    model, batch = make(kind)
    host = cw.Host(model)
    if method not in IN_FRONT or not can(method, host):
        return
    ill = stir(host.add("ill", method, seed=1, **small(method)), 1)
    stir(host.add("long", method, seed=2, **{**small(method), "tokens": 7}), 2)
    stir(host.add("lora", "lora", rank=3), 3)
    with torch.no_grad():
        for p in ill.parameters():
            p.fill_(float("nan"))
    mask = torch.ones_like(batch["input_ids"])
    mask[1, :2] = mask[2, 3:] = mask[3, :1] = 0
    batch |= {"attention_mask": mask, "position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}
    route = ["ill", None, "lora", "long"]
    with torch.no_grad(), host.route(route):
        mixed = answer(model, batch)
        steps = {**batch, "input_ids": batch["input_ids"][:, :4], "position_ids": batch["position_ids"][:, :4]}
        if kind != "bert":
            first = model(**{**steps, "attention_mask": mask[:, :4]}, use_cache=True)
            rest = {"input_ids": batch["input_ids"][:, 4:], "position_ids": batch["position_ids"][:, 4:]}
            second = model(**rest, attention_mask=mask, past_key_values=first.past_key_values).logits
            cached = torch.cat([first.logits, second], 1)
            torch.testing.assert_close(cached[1:][mask[1:].bool()], mixed[1:][mask[1:].bool()], rtol=1e-4, atol=1e-5)
    assert mixed[0].isnan().any() and mixed[1:].isfinite().all()
    for i, name in list(enumerate(route))[1:]:
        keep = mask[i].bool()
        row = {"input_ids": batch["input_ids"][i : i + 1, keep]}
        with torch.no_grad(), host.route(name):
            torch.testing.assert_close(mixed[i, keep], answer(model, row)[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_gradients_reach_every_trainable_pool_and_nothing_else(method):
    model, batch = make("bert" if can(method, cw.Host(make("bert")[0])) else model_of(method))
    host = cw.Host(model)
    tenant = stir(host.add("t", method, **reached(method)), std=0.02)
    other = host.add("other", method, **reached(method))
    if not tenant.count():
        return
    model.train()
    with host.listening() as heard, host.route("t"):
        loss = answer(model, batch).square().sum()
    (loss + heard.loss(tenant)).backward()
    for name, p in tenant.named_parameters():
        assert p.grad is not None and p.grad.abs().sum() > 0, name
    assert all(p.grad is None for p in other.parameters())
    assert all(p.grad is None and not p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("method", METHODS)
def test_the_count_of_the_plan_is_the_count_of_the_tensors(method):
    model, _ = make(model_of(method))
    host = cw.Host(model)
    tenant = host.add("t", method, **small(method))
    assert tenant.plan.count() == tenant.count()
    assert tenant.plan.nbytes == tenant.nbytes
    assert {n: tuple(t.shape) for n, t in tenant.pools.items()} == {n: p.shape for n, p in tenant.plan.pools.items()}


@pytest.mark.parametrize("method", METHODS)
def test_adding_tenants_moves_no_initial_value(method):
    model, _ = make(model_of(method))
    first = cw.Host(model)
    a = {n: t.detach().clone() for n, t in first.add("t", method, seed=5, **small(method)).pools.items()}
    first.close()
    second = cw.Host(model)
    second.add("x", "lora", seed=5)
    torch.manual_seed(99)
    b = second.add("t", method, seed=5, **small(method)).pools
    assert a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


@pytest.mark.parametrize("method", METHODS)
def test_save_and_load_give_equal_bits_in_a_small_file(method, tmp_path):
    model, _ = make(model_of(method))
    host = cw.Host(model)
    other = cw.Host(make(model_of(method))[0])
    for i, options in enumerate(variants(method)):
        tenant = stir(host.add(f"t{i}", method, seed=4, **options))
        path = host.save(tenant.name, tmp_path / "t.safetensors")
        assert path.stat().st_size <= 1.02 * tenant.nbytes + 8192
        again = other.load(f"u{i}", path)
        assert again.plan == tenant.plan and again.config == tenant.config and again.sites == tenant.sites
        for n in tenant.pools:
            assert torch.equal(tenant.pools[n], again.pools[n]), n


def digests() -> dict[str, str]:
    return {m: cw.plan(m, SITES, **small(m)).digest() for m in METHODS}


def test_nothing_depends_on_the_hash_seed():
    """This process has one hash seed, mostly a random one; the other process has another."""
    seed = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
    there = subprocess.run(
        [sys.executable, "-c", "import json, tests.laws.test_laws as t; print(json.dumps(t.digests()))"],
        env={**os.environ, "PYTHONHASHSEED": seed},
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(there.stdout) == digests()
