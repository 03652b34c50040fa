"""PiSSA against the paper's equations, written out."""

import copy

import pytest
import torch

import commonweight as cw
from tests.laws.subjects import stir
from tests.models import answer, make

SMALL = {"rank": 3}
NAME = "model.layers.1.mlp.up_proj"


@pytest.mark.parametrize("alpha,scale", [(None, 1.0), (6.0, 1.5)])
def test_formula(alpha, scale):
    model, _ = make("llama")
    host = cw.Host(model)
    tenant = host.add("t", "pissa", rank=4, alpha=alpha)
    u, s, v = torch.linalg.svd(host.weight(NAME), full_matrices=False)
    principal = sum(s[i] * torch.outer(u[:, i], v[i]) for i in range(4))
    A, B = (tenant.pools[f"{NAME}.{k}"] for k in "AB")
    torch.testing.assert_close(scale * (B @ A).detach(), principal)
    torch.testing.assert_close((A * A).sum(1), s[:4] / scale, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close((B * B).sum(0), s[:4] / scale, rtol=1e-4, atol=1e-5)
    stir(tenant)
    want = host.weight(NAME) - principal + scale * (B @ A).detach()
    torch.testing.assert_close(host.merged("t")[f"{NAME}.weight"], want)


def test_factors_are_the_exact_change_with_rank_2r():
    model, _ = make("llama")
    host = cw.Host(model)
    tenant = stir(host.add("t", "pissa", rank=3))
    use = next(u for u in tenant.plan.uses if u.site == NAME)
    A, B = use.bind.factors(**{k: tenant.pools[f"{NAME}.{k}"].detach() for k in use.reads})
    assert A.shape == (6, 32) and B.shape == (64, 6)
    torch.testing.assert_close(host.merged("t")[f"{NAME}.weight"], host.weight(NAME) + B @ A)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_start_is_bitwise_the_base(dtype):
    model, batch = make("llama")
    host = cw.Host(copy.deepcopy(model).to(dtype))
    host.add("t", "pissa", rank=4)
    with torch.no_grad():
        base = answer(host.model, batch)
        with host.route("t"):
            assert torch.equal(answer(host.model, batch), base)


def test_signs_of_the_frozen_pair_do_not_matter():
    model, batch = make("llama")
    host = cw.Host(model)
    tenant = stir(host.add("t", "pissa", rank=4))
    with torch.no_grad(), host.route("t"):
        before = answer(model, batch)
        for name, pool in tenant.pools.items():
            if name.endswith("0"):
                pool.neg_()
        torch.testing.assert_close(answer(model, batch), before, rtol=1e-4, atol=1e-5)


def test_the_frozen_pair_exists_once_whatever_the_seeds():
    model, _ = make("llama")
    host = cw.Host(model)
    a, b = (host.add(n, "pissa", rank=3, seed=i) for i, n in enumerate("ab"))
    for k in "AB":
        assert a.pools[f"{NAME}.{k}0"] is b.pools[f"{NAME}.{k}0"]
        assert torch.equal(a.pools[f"{NAME}.{k}"], b.pools[f"{NAME}.{k}"])
        assert a.pools[f"{NAME}.{k}"].data_ptr() != b.pools[f"{NAME}.{k}"].data_ptr()


def test_a_tenant_of_a_float32_base_loads_on_its_bfloat16_copy(tmp_path):
    model, batch = make("llama")
    copied = cw.Host(copy.deepcopy(model).bfloat16())
    host = cw.Host(model)
    stir(host.add("t", "pissa", rank=4))
    copied.load("t", host.save("t", tmp_path / "t.safetensors"))
    with torch.no_grad():
        base = answer(model, batch)
        with host.route("t"), copied.route("t"):
            wanted, found = answer(model, batch), answer(copied.model, batch)
    assert (found - wanted).abs().max() < 0.05 * (wanted - base).abs().max()


def test_count_is_loras_and_only_a_and_b_are_stored():
    sites = [cw.Site("q", 48, 32)]
    plan = cw.plan("pissa", sites, rank=4)
    assert plan.count() == cw.plan("lora", sites, rank=4).count() == 4 * (48 + 32)
    assert plan.nbytes == 4 * plan.count()


def test_more_rank_than_singular_values():
    with pytest.raises(
        cw.CommonweightError,
        match=r"pissa: q: rank=9 is more than the 8 singular values of a weight \(8, 16\); lower rank, or exclude",
    ):
        cw.plan("pissa", [cw.Site("q", 8, 16)], rank=9)
