"""ScaLearn against the paper's sum over source adapters, written out source by source."""

import pytest
import torch
from torch.nn import functional as F

import commonweight as cw
from commonweight.methods.tasks.scalearn import sources
from tests.laws.subjects import stir
from tests.models import answer, make

SMALL = {"sources": 3, "size": 4}
VARIANTS = [
    {"dropout": 0.0},
    {"scaling": "scalar"},
    {"scaling": "scalar", "layers": "shared"},
    {"placement": "pfeiffer"},
]
DOWN = "model.layers.1.mlp.down_proj"


def trained(host, n=3, **options):
    return [stir(host.add(f"s{i}", "bottleneck", size=4, seed=i, **options), i, 0.3) for i in range(n)]


@pytest.mark.parametrize("layers", ["own", "shared"])
@pytest.mark.parametrize("scaling", ["vector", "scalar"])
def test_formula_over_trained_sources(scaling, layers):
    host = cw.Host(make("llama")[0])
    made = trained(host, placement="pfeiffer")
    sources(host, ["s0", "s1", "s2"], "bank")
    options = {"sources": 3, "size": 4, "scaling": scaling, "layers": layers, "common": "bank", "placement": "pfeiffer"}
    target = stir(host.add("t", "scalearn", **options), 5, 0.5)
    omega = target.pools["scalearn.omega" if layers == "shared" else f"{DOWN}.omega"].detach()
    assert omega.shape == ((3, 32) if scaling == "vector" else (3,))
    module, x = host.model.get_submodule(DOWN), torch.randn(2, 5, 64)
    with torch.no_grad():
        y = module(x)
        want = y.clone()
        for s, source in enumerate(made):
            p = {k: source.pools[f"{DOWN}.{k}"] for k in ("down", "down_bias", "up", "up_bias")}
            o = F.gelu(y @ p["down"].T + p["down_bias"]) @ p["up"].T + p["up_bias"]
            want += omega[s] * o
        with host.route("t"):
            torch.testing.assert_close(module(x), want)


@pytest.mark.parametrize("scaling", ["vector", "scalar"])
def test_training_drops_omegas_as_the_official_layer(scaling):
    """nn.Dropout(p) on omega (S, d) or (S, 1), then the sum over sources and the residual; nothing in evaluation."""
    host = cw.Host(make("llama")[0])
    made = trained(host)
    sources(host, ["s0", "s1", "s2"], "bank")
    target = stir(host.add("t", "scalearn", sources=3, size=4, scaling=scaling, dropout=0.5, common="bank"), 5, 0.5)
    omega = target.pools[f"{DOWN}.omega"].detach()
    omega = omega[:, None] if scaling == "scalar" else omega
    module, x = host.model.get_submodule(DOWN), torch.randn(2, 5, 64)
    with torch.no_grad():
        y = module(x)
        outs = []
        for source in made:
            p = {k: source.pools[f"{DOWN}.{k}"] for k in ("down", "down_bias", "up", "up_bias")}
            outs.append(F.gelu(y @ p["down"].T + p["down_bias"]) @ p["up"].T + p["up_bias"])
        for train in (True, False):
            module.train(train)
            torch.manual_seed(4)
            with host.route("t"):
                got = module(x)
            torch.manual_seed(4)
            dropped = F.dropout(omega, 0.5, training=train)
            assert (dropped == 0).any() == train
            want = y + sum(w * o for w, o in zip(dropped, outs))
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_the_start_and_dropout_are_those_of_the_scripts():
    sites = [cw.Site(f"layers.{i}.output.dense", 768, 3072, role="down") for i in range(3)]
    host = cw.Host(make("llama")[0])
    omega = torch.cat([p.detach().flatten() for p in host.add("t", "scalearn", sources=8, size=4).parameters()])
    assert abs(omega.mean() - 2 / 8) < 2e-4 and 0.0008 < omega.std() < 0.0012
    for scaling, layers, p in (
        ("vector", "own", 0.3),
        ("scalar", "own", 0.3),
        ("vector", "shared", 0.3),
        ("scalar", "shared", 0.0),
    ):
        assert cw.plan("scalearn", sites, scaling=scaling, layers=layers).uses[0].bind.dropout == p
    assert cw.plan("scalearn", sites, scaling="scalar", layers="shared", dropout=0.2).uses[0].bind.dropout == 0.2


def test_one_source_at_omega_one_is_that_source():
    model, batch = make("bert")
    host = cw.Host(model)
    trained(host, placement="houlsby")
    tenant = sources(host, ["s1", "s2"], "bank")
    with torch.no_grad():
        for p in tenant.parameters():
            p.copy_(torch.tensor([1.0, 0.0]))
        with host.route("bank"):
            ours = answer(model, batch)
        with host.route("s1"):
            torch.testing.assert_close(ours, answer(model, batch), rtol=1e-5, atol=1e-6)


def test_counts_are_the_papers():
    """RoBERTa base, eight sources: 8 numbers a tenant for Uniform++, and 12 x 8 x 768 at most."""
    sites = [cw.Site(f"layers.{i}.output.dense", 768, 3072, role="down") for i in range(12)]
    for scaling, layers, count in (
        ("vector", "own", 12 * 8 * 768),
        ("scalar", "own", 12 * 8),
        ("vector", "shared", 8 * 768),
        ("scalar", "shared", 8),
    ):
        plan = cw.plan("scalearn", sites, sources=8, scaling=scaling, layers=layers)
        assert plan.count() == count
        assert sum(p.numel for p in plan.pools.values() if p.scope == "tenant") == count


def test_targets_read_one_bank(tmp_path):
    host = cw.Host(make("llama")[0])
    trained(host)
    sources(host, ["s0", "s1"])
    options = {"sources": 2, "size": 4, "common": "sources"}
    a, b = (host.add(n, "scalearn", scaling=s, **options) for n, s in (("a", "vector"), ("b", "scalar")))
    bank = [n for n in a.pools if not n.endswith("omega")]
    assert all(a.pools[n] is b.pools[n] for n in bank)
    assert b.private_nbytes == 4 * 2 * 4 and b.private_nbytes * 32 == a.private_nbytes, "four sites of width 32"
    stir(a)
    other = cw.Host(make("llama")[0])
    again = other.load("a", host.save("a", tmp_path / "a.safetensors"))
    assert all(torch.equal(again.pools[n], t) for n, t in a.pools.items())


def test_errors():
    host = cw.Host(make("llama")[0])
    trained(host, 2)
    host.add("lora", "lora")
    host.add("wide", "bottleneck", size=5)
    with pytest.raises(cw.CommonweightError, match="scalearn: no source tenants were named"):
        sources(host, [])
    with pytest.raises(cw.CommonweightError, match="scalearn: lora is a tenant of lora; wanted one of 'bottleneck'"):
        sources(host, ["s0", "lora"])
    with pytest.raises(cw.CommonweightError, match="scalearn: wide has another config or other sites than s0"):
        sources(host, ["s0", "wide"])
    sources(host, ["s0", "s1"], "bank")
    with pytest.raises(cw.CommonweightError, match=r"the common 'bank' holds .* this tenant wants"):
        host.add("t", "scalearn", sources=3, size=4, common="bank")
    uneven = [cw.Site("a.down", 32, 8, role="down"), cw.Site("b.down", 16, 8, role="down")]
    with pytest.raises(cw.CommonweightError, match=r"scalearn: b.down: its output has width 16, a.down's 32; one vec"):
        cw.plan("scalearn", uneven, layers="shared")
    assert cw.plan("scalearn", uneven, layers="shared", scaling="scalar").count() == 4
