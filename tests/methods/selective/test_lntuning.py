"""LayerNorm tuning against the norms' own formulas, written out."""

import pytest
import torch

import commonweight as cw
from tests.laws.subjects import stir
from tests.models import answer, make

SMALL = {}


def test_formula_of_a_norm_with_bias():
    model, _ = make("bert")
    host = cw.Host(model)
    tenant = stir(host.add("t", "lntuning"))
    name = "encoder.layer.1.output.LayerNorm"
    norm, x = model.get_submodule(name), torch.randn(2, 3, 32)
    weight, bias = norm.weight.clone(), norm.bias.clone()  # read outside of the route: within it they are the tenant's
    dw, db = (tenant.pools[f"{name}.{s}"].detach() for s in ("dw", "db"))
    unit = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + norm.eps).sqrt()
    with host.route("t"):
        torch.testing.assert_close(norm(x), unit * (weight + dw) + bias + db)


def test_formula_of_a_norm_without_bias():
    model, _ = make("llama")
    host = cw.Host(model)
    tenant = stir(host.add("t", "lntuning"))
    assert all(p.endswith(".dw") for p in tenant.pools)
    name = "model.layers.0.input_layernorm"
    norm, x = model.get_submodule(name), torch.randn(2, 3, 32)
    weight = norm.weight.clone()
    with host.route("t"):
        want = x / (x.square().mean(-1, keepdim=True) + norm.variance_epsilon).sqrt()
        torch.testing.assert_close(norm(x), want * (weight + tenant.pools[f"{name}.dw"].detach()))


def test_the_last_norm_is_there_by_a_pattern():
    model, batch = make("llama")
    host = cw.Host(model)
    assert len(host.add("blocks", "lntuning").plan.uses) == 4
    tenant = stir(host.add("last", "lntuning", sites="model.norm"))
    assert [u.site for u in tenant.plan.uses] == ["model.norm"]
    with torch.no_grad():
        base = answer(model, batch)
        with host.route("last"):
            assert (answer(model, batch) - base).abs().max() > 1e-3


def test_count():
    sites = [cw.Site("n1", 768, 1, "norm"), cw.Site("n2", 4096, 1, "norm", bias=False)]
    assert cw.plan("lntuning", sites).count() == 2 * 768 + 4096


def test_no_norm():
    with pytest.raises(cw.CommonweightError, match="lntuning: no site of kind norm among 1 site"):
        cw.plan("lntuning", [cw.Site("q", 8, 8)])
