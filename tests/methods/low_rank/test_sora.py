"""SoRA: the threshold of the paper and of the published code, and what is stored."""

import pytest
import torch

import commonweight as cw
from commonweight.methods.low_rank.sora import proximal
from tests.laws.subjects import stir
from tests.models import make

SMALL = {"rank": 3}
VARIANTS = [{"ranks": [["*q_proj", 0], ["*", 2]]}]


def official(g, by):
    """The three comparisons one after the other, number by number."""
    out = []
    for v in g.tolist():
        if v > by:
            v -= by
        if v < -by:
            v += by
        if abs(v) < by:
            v = 0.0
        out.append(v)
    return torch.tensor(out)


def test_thresholds():
    g = torch.tensor([5e-4, -5e-4, 7e-4, -9e-4, 2e-4, 0.0])
    torch.testing.assert_close(proximal(g, 3e-4, False), torch.tensor([2e-4, -2e-4, 4e-4, -6e-4, 0.0, 0.0]))
    torch.testing.assert_close(proximal(g, 3e-4, True), official(g, 3e-4))
    assert proximal(g, 3e-4, True)[0] == 0, "the published code closes a gate below twice the threshold"


def test_formula():
    host, site = cw.Host(make("llama")[0]), "model.layers.1.mlp.up_proj"
    tenant = stir(host.add("t", "sora", rank=3, alpha=6))
    A, B, g = (tenant.pools[f"{site}.{k}"].detach() for k in "ABd")
    want = host.weight(site) + sum(2 * g[i] * torch.outer(B[:, i], A[i]) for i in range(3))
    torch.testing.assert_close(host.merged("t")[f"{site}.weight"], want, rtol=1e-4, atol=1e-5)


def test_the_penalty_is_the_mean_gate():
    tenant = cw.Host(make("llama")[0]).add("t", "sora", rank=3, penalty=2.0)
    gates = torch.cat([p for n, p in tenant.named_parameters() if n.endswith(".d")])
    got = tenant.method.penalty(tenant.config, tenant.plan, tenant.pools)
    torch.testing.assert_close(got, 2 * gates.detach().abs().mean())


def test_closed_gates_are_not_stored():
    host = cw.Host(make("llama")[0], sites="*.q_proj|*.k_proj")
    tenant = host.add("t", "sora", rank=3)
    with torch.no_grad():
        for n, p in tenant.named_parameters():
            if n.endswith(".d"):
                p.copy_(torch.tensor([0.0, 1.0, 0.0]) * ("q_proj" in n))
    found = host.compact("t")
    assert {u.site.rpartition(".")[2] for u in found.plan.uses} == {"q_proj"}
    assert all(p.shape[0] == 1 for n, p in found.named_parameters() if n.endswith(".A"))


def test_ranks_below_nothing():
    with pytest.raises(cw.CommonweightError, match="must be >= 0"):
        cw.plan("sora", [cw.Site("q", 4, 4)], ranks=[["*", -1]])
