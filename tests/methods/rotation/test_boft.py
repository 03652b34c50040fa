"""BOFT against its formula: dense permutations, dense block-diagonal matrices, their product."""

import pytest
import torch

import commonweight as cw
from tests.laws.subjects import stir
from tests.models import make

SMALL = {"block_size": 4, "factors": 2}
VARIANTS = [{"factors": 1}, {"block_size": None, "blocks": 4, "dropout": 0.1}]


def permutation(width, b, i):
    """P_i: within 2^i neighbouring blocks, half-blocks of even place come first, then those of odd place."""
    half, span = b // 2, b * 2**i
    order = []
    for start in range(0, width, span):
        places = range(span // half)
        for place in [*(p for p in places if p % 2 == 0), *(p for p in places if p % 2)]:
            order += range(start + place * half, start + (place + 1) * half)
    return torch.eye(width)[order]


@pytest.mark.parametrize("factors", [1, 2, 3, 4])
def test_formula(factors):
    host = cw.Host(make("bert")[0])
    tenant = stir(host.add("t", "boft", block_size=4, factors=factors, sites="*.query"), std=0.3)
    merged = host.merged("t")
    name, eye = "encoder.layer.0.attention.self.query", torch.eye(4)
    total = torch.eye(32)
    for i, blocks in enumerate(tenant.pools[f"{name}.R"].detach()):
        skews = [(M - M.T) / 2 for M in blocks]
        P, B = permutation(32, 4, i), torch.block_diag(*[(eye - Q) @ torch.linalg.inv(eye + Q) for Q in skews])
        total = P @ B @ P.T @ total
    torch.testing.assert_close(total @ total.T, torch.eye(32), rtol=1e-5, atol=1e-5)
    s = tenant.pools[f"{name}.s"].detach()
    torch.testing.assert_close(merged[f"{name}.weight"], torch.diag(s) @ host.weight(name) @ total.T)
    assert f"{name}.bias" not in merged


def test_factors_make_blocks_meet():
    bind = cw.methods.get("boft").plan([cw.Site("q", 1, 32)], cw.methods.BOFT(block_size=4, factors=4)).uses[0].bind
    g = torch.Generator().manual_seed(0)
    R, s = torch.randn(4, 8, 4, 4, generator=g), torch.ones(32)
    dense = bind.weight(torch.eye(32), R, s)
    assert (dense.abs() > 1e-9).all(), "8 blocks and 1 + log2(8) factors reach every dimension from every other"
    assert (bind.weight(torch.eye(32), R[:3], s).abs() > 1e-9).float().mean() == 0.5


def test_dropout_only_in_training():
    model, _ = make("llama")
    host = cw.Host(model)
    name = "model.layers.0.self_attn.q_proj"
    stir(host.add("t", "boft", block_size=4, dropout=0.5, sites=name))
    layer, x = model.get_submodule(name), torch.randn(1, 32)
    with torch.no_grad(), host.route("t"):
        assert torch.equal(layer(x), layer(x))
        model.train()
        torch.manual_seed(0)
        assert not torch.equal(layer(x), layer(x))


def test_count():
    sites = [cw.Site(f"layers.{i}.q_proj", 1024, 4096) for i in range(32)]
    assert cw.plan("boft", sites).count() == 32 * (2 * 4096 * 8 + 1024)
    assert cw.plan("boft", sites, blocks=1024, factors=3).count() == 32 * (3 * 4096 * 4 + 1024)


def test_size_and_number_of_blocks_at_once():
    with pytest.raises(
        cw.CommonweightError, match="BOFT: block_size=8 and blocks=4 say the same thing; give one of them"
    ):
        cw.methods.BOFT(block_size=8, blocks=4)


def test_widths_that_do_not_split():
    sites = [cw.Site("q_proj", 32, 24)]
    for options, message in (
        ({}, r"boft: q_proj: input width 24 does not split by block_size=8 in groups of 2 blocks of even size; choose"),
        ({}, r"choose block_size from \[2, 4, 6, 12\], or exclude the site"),
        ({"blocks": 3}, r"by blocks=3 in groups of 2 blocks of even size; choose blocks from \[2, 4, 6, 12\]"),
        ({"block_size": 4, "factors": 6}, r"by block_size=4 in groups of 32 blocks of even size; exclude the site"),
    ):
        with pytest.raises(cw.CommonweightError, match=message):
            cw.plan("boft", sites, **options)
