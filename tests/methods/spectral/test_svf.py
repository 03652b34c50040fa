"""SVF against the formulas of the paper and of the official code, written out with a plain SVD."""

import pytest
import torch

import commonweight as cw
from commonweight.methods.spectral.svf import mix
from tests.laws.subjects import stir
from tests.models import answer, make

SMALL = {}
VARIANTS = [{"rank": 3}, {"mask": "sigmoid"}]
NAME = "model.layers.1.mlp.up_proj"


def decomposed(host):
    w = host.weight(NAME)
    u, s, vt = torch.linalg.svd(w.bfloat16().float(), full_matrices=False)
    return w, u, s, vt


def test_formula():
    """W' = U diag(s z) V^T; what bfloat16 rounds off the weight stays beside it."""
    model, _ = make("llama")
    host = cw.Host(model)
    tenant = stir(host.add("t", "svf"))
    w, u, s, vt = decomposed(host)
    z = 1 + tenant.pools[f"{NAME}.z"].detach()
    want = u @ torch.diag(s * z) @ vt + (w - w.bfloat16().float())
    torch.testing.assert_close(host.merged("t")[f"{NAME}.weight"], want, rtol=1e-4, atol=1e-5)


def test_formula_of_the_official_code():
    """U diag(s m) V^T sum(s) / sum(s m), m = sigmoid(p)."""
    model, batch = make("llama")
    host = cw.Host(model)
    tenant = stir(host.add("t", "svf", mask="sigmoid"), std=0.5)
    w, u, s, vt = decomposed(host)
    m = torch.sigmoid(tenant.pools[f"{NAME}.z"].detach())
    want = u @ torch.diag(s * m) @ vt * (s.sum() / (s * m).sum()) + (w - w.bfloat16().float())
    merged = host.merged("t")
    torch.testing.assert_close(merged[f"{NAME}.weight"], want, rtol=1e-4, atol=1e-5)
    stir(host.add("u", "svf", mask="sigmoid"), 1, 0.5)
    with torch.no_grad():
        with host.route("t"):
            alone = answer(model, batch)
        with host.route(["t", "u", "t", "u"]):
            torch.testing.assert_close(answer(model, batch)[::2], alone[::2], rtol=1e-4, atol=1e-5)
        plain = make("llama")[0]
        plain.load_state_dict(merged, strict=False)
        torch.testing.assert_close(answer(plain, batch), alone, rtol=1e-4, atol=1e-5)


def test_equal_numbers_in_the_official_mask_are_the_base():
    model, _ = make("llama")
    host = cw.Host(model)
    tenant = host.add("t", "svf", mask="sigmoid")
    with torch.no_grad():
        for p in tenant.parameters():
            p.fill_(0.7)
    torch.testing.assert_close(host.merged("t")[f"{NAME}.weight"], host.weight(NAME), rtol=1e-5, atol=1e-6)


def test_rank_scales_the_largest_singular_values_alone():
    model, _ = make("llama")
    host = cw.Host(model)
    tenant = host.add("t", "svf", rank=2)
    with torch.no_grad():
        for p in tenant.parameters():
            p.fill_(0.5)
    _, _, s, _ = decomposed(host)
    s[:2] *= 1.5
    got = torch.linalg.svdvals(host.merged("t")[f"{NAME}.weight"])
    torch.testing.assert_close(got, s.sort(descending=True).values, rtol=1e-2, atol=1e-3)


def test_mix_is_the_sum_of_the_expert_vectors():
    model, _ = make("llama")
    host = cw.Host(model)
    experts = [stir(host.add(n, "svf"), i) for i, n in enumerate("abc")]
    alpha = (0.5, 0.3, 0.4)
    pools = mix([t.pools for t in experts], alpha)
    assert pools.keys() == {n for n, p in experts[0].plan.pools.items() if p.train}
    mixed = host.add("m", "svf")
    with torch.no_grad():
        for n, v in pools.items():
            mixed.pools[n].copy_(v)
    _, u, s, vt = decomposed(host)
    z = sum(a * (1 + t.pools[f"{NAME}.z"].detach()) for a, t in zip(alpha, experts))
    got, w = host.merged("m")[f"{NAME}.weight"], host.weight(NAME)
    torch.testing.assert_close(got, u @ torch.diag(s * z) @ vt + (w - w.bfloat16().float()), rtol=1e-4, atol=1e-5)
    again = mix([t.pools for t in experts], (0.0, 1.0, 0.0))
    torch.testing.assert_close(again[f"{NAME}.z"], experts[1].pools[f"{NAME}.z"].detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("experts", "alpha", "message"),
    [
        ([], [], "0 experts and 0 alphas"),
        ([{"q.z": torch.zeros(2)}], [0.5, 0.5], "1 expert and 2 alphas; give one alpha to each"),
        ([{"q.z": torch.zeros(2)}, {"q.z": torch.zeros(3)}], [0.5, 0.5], "different sites or ranks"),
        ([{"q.B": torch.zeros(2)}], [1.0], "different sites or ranks"),
    ],
)
def test_what_cannot_be_mixed(experts, alpha, message):
    with pytest.raises(cw.CommonweightError, match=message):
        mix(experts, alpha)


def test_count_is_one_number_for_each_singular_value():
    sites = [cw.Site(f"layers.{i}.{n}", o, 4096) for i in range(32) for n, o in (("q_proj", 4096), ("v_proj", 1024))]
    plan = cw.plan("svf", sites)
    assert plan.count() == 32 * (4096 + 1024) and plan.nbytes == 4 * plan.count()
    assert cw.plan("svf", sites, rank=16).count() == 64 * 16


def test_a_rank_above_the_weights():
    with pytest.raises(cw.CommonweightError, match=r"svf: v: rank 9 is more than its weight \(8, 32\) has; .*<= 8"):
        cw.plan("svf", [cw.Site("v", 8, 32)], rank=9)


def test_a_tenant_of_a_bfloat16_base_loads_on_the_float32_one(tmp_path):
    wide, narrow = cw.Host(make("llama")[0]), cw.Host(make("llama")[0].bfloat16())
    stir(narrow.add("t", "svf"))
    loaded = wide.load("again", narrow.save("t", tmp_path / "t.safetensors"))
    assert all(torch.equal(loaded.pools[n], p) for n, p in narrow["t"].pools.items())
