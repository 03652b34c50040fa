"""LoRA-XS against the paper's formula, written out with a plain SVD."""

import pytest
import torch

import commonweight as cw
from tests.laws.subjects import stir
from tests.models import make

SMALL = {"rank": 3}
VARIANTS = [{"factors": "common"}]


def test_formula():
    model, _ = make("llama")
    host = cw.Host(model)
    tenant = stir(host.add("t", "lora-xs", rank=4, alpha=6.0))
    merged = host.merged("t")
    name = "model.layers.1.mlp.up_proj"
    w, r = host.weight(name), tenant.pools[f"{name}.R"].detach()
    # the official code: the SVD of the transposed weight, U S on the input's side
    u, s, vt = torch.linalg.svd(w.bfloat16().float().T, full_matrices=False)
    sign = torch.sign((u[:, :4] * tenant.pools[f"{name}.A"].T).sum(0))
    a, b = u[:, :4] * s[:4] * sign, vt[:4] * sign[:, None]
    torch.testing.assert_close(merged[f"{name}.weight"], w + 1.5 * (a @ r.T @ b).T, rtol=1e-4, atol=1e-5)


def test_the_factors_multiply_to_the_best_approximation_of_the_weight():
    model, _ = make("llama")
    host = cw.Host(model)
    name = "model.layers.0.self_attn.v_proj"
    pools = host.add("t", "lora-xs", rank=16, std=1e-5).pools
    torch.testing.assert_close(
        pools[f"{name}.B"] @ pools[f"{name}.A"], host.weight(name).bfloat16().float(), rtol=1e-4, atol=1e-5
    )
    assert 1e-6 < pools[f"{name}.R"].std() < 1e-4


def test_count_and_bytes_are_those_of_r_alone():
    sites = [cw.Site(f"layers.{i}.{n}", o, 4096) for i in range(32) for n, o in (("q_proj", 4096), ("up_proj", 11008))]
    plan = cw.plan("lora-xs", sites, rank=16)
    assert plan.count() == 64 * 16 * 16
    assert plan.nbytes == 4 * plan.count()


def test_a_rank_above_the_weights():
    with pytest.raises(cw.CommonweightError, match=r"lora-xs: v: rank 9 is more than its weight \(8, 32\) has; .*<= 8"):
        cw.plan("lora-xs", [cw.Site("v", 8, 32)], rank=9)


def test_a_tenant_trained_on_a_bfloat16_base_loads_on_the_float32_one_and_back(tmp_path):
    wide, narrow = cw.Host(make("llama")[0]), cw.Host(make("llama")[0].bfloat16())
    for one, other in ((wide, narrow), (narrow, wide)):
        stir(one.add("t", "lora-xs", rank=4))
        loaded = other.load("again", one.save("t", tmp_path / "t.safetensors"))
        assert all(torch.equal(loaded.pools[n], p) for n, p in one["t"].pools.items())
        one.remove("t"), other.remove("again")
