"""NLoRA against the Nystrom formula, written out."""

import pytest
import torch

import commonweight as cw
from tests.laws.subjects import stir
from tests.models import answer, make

SMALL = {"rank": 3}
VARIANTS = [{"init": "nystrom"}, {"init": "block", "train": "intermediate"}]
NAME = "model.layers.1.mlp.up_proj"


@pytest.mark.parametrize("init", ["nystrom", "block"])
def test_formula(init):
    model, _ = make("llama")
    host = cw.Host(model)
    tenant = host.add("t", "nlora", rank=4, alpha=6.0, init=init)
    w = host.weight(NAME).double()
    block = w[:4, :4]
    start = w[:, :4] @ (torch.linalg.pinv(block, rtol=1e-3) if init == "nystrom" else block) @ w[:4]
    A, M, B = (tenant.pools[f"{NAME}.{k}"].detach().double() for k in "AMB")
    torch.testing.assert_close(B @ M @ A, start, rtol=1e-4, atol=1e-5)
    stir(tenant)
    A, M, B = (tenant.pools[f"{NAME}.{k}"].detach().double() for k in "AMB")
    want = w - 1.5 * start + 1.5 * B @ M @ A
    torch.testing.assert_close(host.merged("t")[f"{NAME}.weight"], want.float(), rtol=1e-4, atol=1e-4)


def test_the_nystrom_start_is_exact_on_the_sampled_rows_and_columns():
    model, _ = make("llama")
    host = cw.Host(model)
    pools = host.add("t", "nlora", rank=4, init="nystrom").pools
    start, w = pools[f"{NAME}.B"] @ pools[f"{NAME}.M"] @ pools[f"{NAME}.A"], host.weight(NAME)
    torch.testing.assert_close(start[:4], w[:4], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(start[:, :4], w[:, :4], rtol=1e-3, atol=1e-4)


def test_inttune_is_the_whole_with_only_m_moved():
    model, batch = make("llama")
    host = cw.Host(model)
    one, whole = host.add("one", "nlora", rank=4, train="intermediate"), host.add("whole", "nlora", rank=4)
    stir(one)
    with torch.no_grad():
        for name, p in one.named_parameters():
            assert name.endswith(".M")
            whole.pools[name] += p
        with host.route("one"):
            a = answer(model, batch)
        with host.route("whole"):
            torch.testing.assert_close(answer(model, batch), a, rtol=1e-3, atol=1e-4)


def test_a_fresh_tenant_is_the_base_in_bfloat16_too():
    model, batch = make("llama")
    model = model.bfloat16()
    host = cw.Host(model)
    with torch.no_grad():
        base = answer(model, batch)
        host.add("t", "nlora", rank=4)
        with host.route("t"):
            torch.testing.assert_close(answer(model, batch), base, rtol=0, atol=0)


def test_counts_are_the_papers():
    sites = [cw.Site(f"layers.{i}.q_proj", 4096, 4096) for i in range(32)]
    assert cw.plan("nlora", sites, rank=128).count() == 32 * (2 * 128 * 4096 + 128 * 128)
    assert cw.plan("nlora", sites, rank=128, train="intermediate").count() == 32 * 128 * 128


def test_a_rank_above_the_weights():
    with pytest.raises(cw.CommonweightError, match=r"nlora: v: rank 9 is more than its weight \(8, 32\) has"):
        cw.plan("nlora", [cw.Site("v", 8, 32)], rank=9)
