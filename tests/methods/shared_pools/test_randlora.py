"""RandLoRA against its sum of bases, written out with plain loops."""

import pytest
import torch

import commonweight as cw
from tests.laws.subjects import stir
from tests.models import make

SMALL = {"rank": 3, "alpha": 0.6}  # at the usual scale of 20 a stirred tiny model leaves float32's comfort
VARIANTS = [{"stored": True}]


@pytest.mark.parametrize("rank", [8, 5])
def test_formula(rank):
    model, _ = make("llama")
    host = cw.Host(model)
    tenant = stir(host.add("t", "randlora", rank=rank, alpha=0.3 * rank), std=0.05)
    A, B = tenant.pools["randlora.A"], tenant.pools["randlora.B"]
    for name, out, inp in (("mlp.up_proj", 64, 32), ("mlp.down_proj", 32, 64), ("self_attn.k_proj", 16, 32)):
        name = f"model.layers.1.{name}"
        low, high = min(out, inp), max(out, inp)
        n = -(-low // rank)
        lam, gamma = (tenant.pools[f"{name}.{k}"].detach() for k in ("lam", "gamma"))
        assert lam.shape == (rank, n) and gamma.shape == (n, low)
        total = torch.zeros(high, low)
        for j in range(n):
            basis = B[:high, [k * n + j for k in range(rank)]]
            total += basis @ torch.diag(lam[:, j]) @ A[:, :low] @ torch.diag(gamma[j])
        want = host.weight(name) + 0.3 * (total if out >= inp else total.T)
        torch.testing.assert_close(host.merged("t")[f"{name}.weight"], want, rtol=1e-4, atol=1e-5)


def test_the_update_has_full_rank():
    model, _ = make("llama")
    tenant = stir(cw.Host(model).add("t", "randlora", rank=4))
    use = tenant.plan.uses[0]
    slots = {k: r.address(tenant.pools[r.pools[0]].detach().double()) for k, r in use.reads.items()}
    A, B = use.bind.factors(**slots)
    assert torch.linalg.matrix_rank(B @ A) == 32


def test_start_scale_and_bases():
    model, _ = make("llama")
    tenant = cw.Host(model).add("t", "randlora", rank=8)
    name = "model.layers.0.mlp.up_proj"
    assert not tenant.pools[f"{name}.lam"].any()
    assert torch.equal(tenant.pools[f"{name}.gamma"].detach(), torch.full((4, 32), 1 / 32))
    assert tenant.plan.uses[0].bind.scale == 20.0
    assert tenant.pools["randlora.A"].shape == (8, 64) and tenant.pools["randlora.B"].shape == (64, 64)
    assert abs(tenant.pools["randlora.B"].std() - 1) < 0.05 and tenant.pools["randlora.B"].abs().max() <= 3**0.5


def test_count_and_stored_bytes():
    sites = [cw.Site("up", 96, 40), cw.Site("down", 40, 96)]
    plan = cw.plan("randlora", sites, rank=16)
    assert plan.count() == 2 * 3 * (16 + 40) and plan.nbytes == 4 * plan.count()
