"""Share against the paper's forward pass."""

import pytest
import torch

import commonweight as cw
from tests.laws.subjects import stir
from tests.models import make

SMALL = {"k": 6, "rank": 2}
VARIANTS = [{"ks": (("*v*", 3, 5),)}]
NAME = "model.layers.1.mlp.up_proj"


def test_formula():
    """h = W0 x + (beta eps_beta) (alpha eps_alpha)^T x, beta and alpha with the directions as columns."""
    host = cw.Host(make("llama")[0])
    tenant = stir(host.add("t", "share", k=6, rank=2), std=0.5)
    p = {k: tenant.pools[f"{NAME}.{k}"].detach() for k in ("basis_A", "basis_B", "eps_A", "eps_B")}
    alpha, beta = p["basis_A"].T, p["basis_B"].T
    want = host.weight(NAME) + (beta @ p["eps_B"]) @ (alpha @ p["eps_A"]).T
    torch.testing.assert_close(host.merged("t")[f"{NAME}.weight"], want)


def test_the_start():
    host = cw.Host(make("llama")[0])
    pools = host.add("t", "share", **SMALL).pools
    for slot in "AB":
        basis = pools[f"{NAME}.basis_{slot}"].detach()
        torch.testing.assert_close(basis @ basis.T, torch.eye(6))
    assert pools[f"{NAME}.eps_A"].any() and not pools[f"{NAME}.eps_B"].any()


def test_counts():
    """T5 or BERT in width 768: a late tenant at p = 1 has 2 k numbers a site, where LoRA of rank 8 has 12,288."""
    sites = [cw.Site(f"layers.{i}.{n}", 768, 768) for i in range(12) for n in ("query", "value")]
    plan = cw.plan("share", sites, k=32, rank=1)
    assert plan.count() == 24 * (32 * 1536 + 64)
    late = sum(p.numel for p in plan.pools.values() if p.scope == "tenant")
    assert late == 24 * 64 and cw.plan("lora", sites, rank=8).count() == 192 * late


def test_directions_are_at_most_the_width_and_may_differ_by_site():
    plan = cw.plan("share", [cw.Site("q", 16, 8), cw.Site("v", 16, 8)], k=12, rank=4, ks=(("v", 3, 5),))
    shapes = {k: p.shape for k, p in plan.pools.items()}
    assert shapes["q.basis_A"] == (8, 8) and shapes["q.basis_B"] == (12, 16) and shapes["q.eps_B"] == (12, 4)
    assert shapes["v.basis_A"] == (3, 8) and shapes["v.basis_B"] == (5, 16) and shapes["v.eps_B"] == (5, 3)


def test_errors():
    with pytest.raises(cw.CommonweightError, match=r"Share: ks gives 'v' the numbers \(3, 0\); they must be >= 1"):
        cw.plan("share", [cw.Site("q", 16, 8)], ks=(("v", 3, 0),))
