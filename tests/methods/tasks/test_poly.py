"""Polytropon and MHR against the papers' formula, written out with plain loops."""

import math

import pytest
import torch

import commonweight as cw
from commonweight.methods.tasks.poly import mean
from tests.laws.subjects import stir
from tests.models import answer, make

SMALL = {"skills": 3, "rank": 2, "heads": 2}
VARIANTS = [{"heads": 1}, {"routing": "shared"}, {"noise": True}]
NAME = "model.layers.1.mlp.up_proj"


def mixed(inventory, z, width):
    """(r, width): head by head, the sum of the skills' blocks times the head's weights."""
    heads, skills, rank, block = inventory.shape
    out = torch.zeros(rank, width)
    for h in range(heads):
        for i in range(skills):
            out[:, h * block : (h + 1) * block] += z[h][i] * inventory[h, i]
    return out


@pytest.mark.parametrize(("routing", "noise"), [("site", False), ("shared", False), ("site", True)])
@pytest.mark.parametrize("heads", [1, 4])
def test_formula(heads, routing, noise):
    host = cw.Host(make("llama")[0])
    options = {"skills": 3, "rank": 2, "heads": heads, "routing": routing, "noise": noise, "alpha": 6.0}
    tenant = stir(host.add("t", "poly", **options), std=0.5)
    pools = {k: v.detach() for k, v in tenant.pools.items()}
    z = []
    for row in pools[f"{NAME}.logits" if routing == "site" else "poly.logits"].tolist():
        p = [1 / (1 + math.exp(-v)) for v in row]
        z.append([v / sum(p) for v in p])
    A, B = mixed(pools[f"{NAME}.A"], z, 32), mixed(pools[f"{NAME}.B"], z, 64).T
    torch.testing.assert_close(host.merged("t")[f"{NAME}.weight"], host.weight(NAME) + 6.0 / 2 * B @ A)


def test_noise_is_polytropons():
    """In training RelaxedBernoulli(1, logits).rsample(), then over its sum; one draw for A and B; else sigmoid."""
    model, _ = make("llama")
    host = cw.Host(model)
    tenant = stir(host.add("t", "poly", noise=True, alpha=2.0, **SMALL), std=0.5)
    A, B, logits = (tenant.pools[f"{NAME}.{k}"].detach() for k in ("A", "B", "logits"))
    layer, x = model.get_submodule(NAME), torch.randn(4, 7, 32)
    for train in (True, False):
        layer.train(train)
        torch.manual_seed(5)
        with torch.no_grad(), host.route("t"):
            got = layer(x)
        torch.manual_seed(5)
        drawn = torch.distributions.RelaxedBernoulli(torch.tensor(1.0), logits=logits).rsample()
        z = drawn if train else logits.sigmoid()
        z = (z / z.sum(-1, keepdim=True)).tolist()
        want = x @ host.weight(NAME).T + x @ mixed(A, z, 32).T @ mixed(B, z, 64)
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_noise_in_a_mixed_batch_is_none_out_of_training():
    model, batch = make("llama")
    host = cw.Host(model)
    stir(host.add("a", "poly", noise=True, common="tasks", **SMALL), std=0.5)
    stir(host.add("b", "poly", noise=True, common="tasks", seed=1, **SMALL), 1, 0.5)
    stir(host.add("c", "poly", noise=True, **SMALL), 2, 0.5)
    with torch.no_grad():
        alone = {}
        for name in "abc":
            with host.route(name):
                alone[name] = answer(model, batch)
        with host.route(list("abca")):
            whole = answer(model, batch)
        for i, name in enumerate("abca"):
            torch.testing.assert_close(whole[i], alone[name][i], rtol=1e-4, atol=1e-5)
        model.get_submodule(NAME).train()
        with host.route(list("abca")):
            assert not torch.equal(answer(model, batch), answer(model, batch))


def test_counts_are_the_papers():
    sites = [cw.Site(f"layers.{i}.{n}_proj", 1024, 1024) for i in range(24) for n in "qkvo"]
    plan = cw.plan("poly", sites, skills=8, rank=16, heads=8)
    assert plan.count() == 96 * (8 * 16 * 2048 + 8 * 8)
    assert sum(p.numel for p in plan.pools.values() if p.scope == "tenant") == 96 * 64, "MHR-z: the routing alone"
    one = cw.plan("poly", sites, skills=8, rank=16, heads=8, routing="shared")
    assert sum(p.numel for p in one.pools.values() if p.scope == "tenant") == 64


def test_heads_cost_routing_only():
    sites = [cw.Site("q_proj", 64, 64)]
    counts = [cw.plan("poly", sites, skills=4, rank=2, heads=h).count() for h in (1, 8)]
    assert counts[1] - counts[0] == 4 * 7


def test_a_late_tenant_trains_its_routing_alone():
    """MHR-z: the inventory of a frozen common, read by weights of its own."""
    model, batch = make("llama")
    host = cw.Host(model)
    first = stir(host.add("first", "poly", common="tasks", **SMALL))
    host.freeze("tasks")
    late = host.add("late", "poly", common="tasks", **SMALL)
    assert late.count() == 14 * 2 * 3 and {n for n, _ in late.named_parameters()} == {
        n for n in first.pools if n.endswith("logits")
    }
    before = {n: t.detach().clone() for n, t in host.common("tasks").pools.items()}
    step = torch.optim.Adam(late.param_groups())
    with host.route("late"):
        answer(model, batch).square().mean().backward()
    step.step()
    assert all(torch.equal(before[n], t) for n, t in host.common("tasks").pools.items())
    with torch.no_grad(), host.route("late"):
        moved = answer(model, batch)
    with torch.no_grad(), host.route("first"):
        assert not torch.equal(moved, answer(model, batch))


def test_mean_is_a_lora_of_the_inventorys_mean():
    host = cw.Host(make("llama")[0])
    poly = stir(host.add("t", "poly", skills=3, rank=2, heads=4, alpha=6.0))
    new = mean(host, "t", "mu")
    assert new.method.name == "lora" and new.count() == sum(2 * (s.out + s.inp) for s in new.sites)
    even = [[1 / 3] * 3] * 4
    A, B = (mixed(poly.pools[f"{NAME}.{k}"].detach(), even, w) for k, w in (("A", 32), ("B", 64)))
    torch.testing.assert_close(host.merged("mu")[f"{NAME}.weight"], host.weight(NAME) + 3.0 * B.T @ A)


def test_errors():
    with pytest.raises(
        cw.CommonweightError,
        match=r"poly: q_proj: width 30 of A is not a multiple of heads=4; choose heads from \[1, 2\]",
    ):
        cw.plan("poly", [cw.Site("q_proj", 32, 30)], heads=4)
    host = cw.Host(make("llama")[0])
    host.add("t", "lora")
    with pytest.raises(
        cw.CommonweightError, match=r"poly: t: a mean is taken of a poly tenant's inventory; this one is of lora"
    ):
        mean(host, "t", "u")
