"""SNNK's adapters: the formula, the kernel that the features estimate, what is stored."""

import math
from typing import Any

import torch

import commonweight as cw
from tests.laws.subjects import stir
from tests.models import answer, make

SMALL = {"features": 4}


def test_formula():
    model, batch = make("bert")
    host = cw.Host(model)
    tenant = stir(host.add("t", "snnk", features=6), std=0.3)
    at = "encoder.layer.0.output.dense"
    g, up, b = (tenant.pools[f"{at}.{k}"].detach() for k in ("down", "up", "up_bias"))
    layer: Any = model.get_submodule(at)
    x = torch.randn(3, 5, layer.in_features)
    with torch.no_grad():
        y = layer(x)
        with host.route("t"):
            got = layer(x)
        want = y + torch.einsum("om,btm->bto", up, (y @ g.T).clamp_min(0)) + b
        torch.testing.assert_close(got, want)
        with host.route("t"):
            changed = answer(model, batch)
    assert float((changed - answer(model, batch)).abs().max()) > 1e-4


def test_the_features_estimate_half_the_arc_cosine_kernel():
    m, d = 200_000, 6
    pool = cw.plan("snnk", [cw.Site("down", d, 8, "linear", "down")], features=m).pools["down.down"]
    g = pool.init(pool.shape, cw.core.Rng(0, "g"), None)  # type: ignore[arg-type]
    x, w = torch.randn(2, d, generator=torch.Generator().manual_seed(0))
    t = math.acos(float(x @ w / (x.norm() * w.norm())))
    want = float(x.norm() * w.norm()) * (math.sin(t) + (math.pi - t) * math.cos(t)) / (2 * math.pi)
    assert abs(float((g @ x).relu() @ (g @ w).relu()) / want - 1) < 0.02


def test_what_trains_and_what_a_file_holds():
    sites = [cw.Site("down", 32, 64, "linear", "down"), cw.Site("o", 32, 32, "linear", "attn_out")]
    plan = cw.plan("snnk", sites, features=5)
    assert plan.count() == 32 * 5 + 32 and not any(u.site == "o" for u in plan.uses)
    assert not plan.pools["down.down"].train and not plan.pools["down.down"].save


def test_a_loaded_tenant_answers_the_same(tmp_path):
    model, batch = make("bert")
    host = cw.Host(model)
    stir(host.add("t", "snnk", features=4, placement="houlsby"), std=0.3)
    with torch.no_grad(), host.route("t"):
        want = answer(model, batch)
    host.save("t", tmp_path / "t.safetensors")
    fresh, _ = make("bert")
    other = cw.Host(fresh)
    other.load("t", tmp_path / "t.safetensors")
    with torch.no_grad(), other.route("t"):
        assert torch.equal(answer(fresh, batch), want)
