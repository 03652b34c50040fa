"""MTLoRA against the official layer's formula, and its tenants in one common."""

import pytest
import torch

import commonweight as cw
from tests.laws.subjects import stir
from tests.models import answer, make

SMALL = {"rank": 4, "own": 2}
VARIANTS = [{"trained": True}]
NAME = "model.layers.1.mlp.up_proj"


@pytest.mark.parametrize("trained", [False, True])
def test_formula(trained):
    """pretrained + (x A^T B^T) * shared scale + (x C^T D^T) * the task's scale."""
    model, _ = make("llama")
    host = cw.Host(model)
    tenant = stir(host.add("t", "mtlora", **SMALL, scale=1.5, own_scale=0.7, trained=trained))
    A, B, C, D = (tenant.pools[f"{NAME}.{k}"].detach() for k in "ABCD")
    s, t = (tenant.pools[f"{NAME}.{k}"].item() if trained else v for k, v in (("s", 1.5), ("t", 0.7)))
    x = torch.randn(5, 32)
    want = x @ host.weight(NAME).T + (x @ A.T @ B.T) * s + (x @ C.T @ D.T) * t
    merged = host.merged("t")[f"{NAME}.weight"]
    torch.testing.assert_close(x @ merged.T, want)
    with torch.no_grad(), host.route("t"):
        torch.testing.assert_close(model.get_submodule(NAME)(x), want)


def test_trained_scales_start_at_the_scales():
    pools = cw.Host(make("llama")[0]).add("t", "mtlora", **SMALL, scale=1.5, own_scale=0.7, trained=True).pools
    assert pools[f"{NAME}.s"].item() == 1.5 and pools[f"{NAME}.t"].item() == pytest.approx(0.7)


def test_two_tenants_of_a_common_differ_in_their_own_update_alone():
    model, batch = make("llama")
    host = cw.Host(model)
    a = stir(host.add("a", "mtlora", **SMALL, trained=True, common="tasks"))
    b = stir(host.add("b", "mtlora", **SMALL, trained=True, common="tasks", seed=1), 1)
    for name in a.plan.pools:
        assert (a.pools[name] is b.pools[name]) == (name.rsplit(".", 1)[1] in "ABs"), name
    with torch.no_grad():
        alone = []
        for name in "ab":
            with host.route(name):
                alone.append(answer(model, batch))
        with host.route(["a", "b", "b", "a"]):
            mixed = answer(model, batch)
    assert (alone[0] - alone[1]).abs().max() > 1e-2
    for row, who in enumerate((0, 1, 1, 0)):
        torch.testing.assert_close(mixed[row], alone[who][row], rtol=1e-4, atol=1e-5)


def test_a_late_tenant_trains_and_costs_its_own_update():
    model, batch = make("llama")
    host = cw.Host(model)
    stir(host.add("a", "mtlora", **SMALL, common="tasks"))
    host.freeze("tasks")
    late = host.add("late", "mtlora", **SMALL, common="tasks")
    own = sum(2 * (s.out + s.inp) for s in late.sites)
    assert late.count() == own and late.private_nbytes == 4 * own
    with host.route("late"):
        answer(model, batch).square().mean().backward()
    assert all(late.pools[f"{NAME}.{k}"].grad is None for k in "AB")
    assert late.pools[f"{NAME}.D"].grad.abs().sum() > 0


def test_the_dropout_of_both_updates_is_one():
    """The official layer drops the input once, before either update."""
    model, _ = make("llama")
    host = cw.Host(model)
    tenant = host.add("t", "mtlora", rank=2, own=2, dropout=0.5)
    with torch.no_grad():
        for k, value in (("A", 1.0), ("B", 1.0), ("C", 1.0), ("D", -1.0)):
            tenant.pools[f"{NAME}.{k}"].fill_(value)
    layer = model.get_submodule(NAME).train()
    x = torch.randn(3, 32)
    with torch.no_grad(), host.route("t"):
        torch.testing.assert_close(layer(x), x @ host.weight(NAME).T, rtol=1e-4, atol=1e-4)


def test_count():
    sites = [cw.Site(f"layers.{i}.q_proj", 2048, 4096) for i in range(32)]
    plan = cw.plan("mtlora", sites, rank=16, own=4)
    assert plan.count() == 32 * 20 * 6144
    assert sum(p.numel for p in plan.pools.values() if p.scope == "tenant") == 32 * 4 * 6144
    assert cw.plan("mtlora", sites, rank=16, own=4, trained=True).count() == plan.count() + 64
