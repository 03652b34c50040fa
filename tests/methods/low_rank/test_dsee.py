"""DSEE: places of a sparse part that is known, and the weight."""

import torch

import commonweight as cw
from commonweight.core import Rng
from commonweight.methods.low_rank.dsee import decomposed
from tests.laws.subjects import stir
from tests.models import make

SMALL = {"rank": 2, "entries": 6, "rounds": 3}


def test_entries_beside_a_low_rank_are_found():
    g = torch.Generator().manual_seed(0)
    low = torch.randn(30, 2, generator=g).double() @ torch.randn(2, 24, generator=g).double()
    sparse = torch.zeros(720).double()
    at = torch.randperm(720, generator=g)[:8]
    sparse[at] = 40.0 * torch.randn(8, generator=g).double().sign()
    s = decomposed(low + sparse.view(30, 24), Rng(1, "x"), rounds=2, step=1, least=0.01)
    assert {*s.abs().flatten().topk(8).indices.tolist()} == {*at.tolist()}


def test_what_is_small_is_zero_and_the_rank_ends_below_the_weight_s():
    w = torch.randn(12, 8, generator=torch.Generator().manual_seed(0)).double()
    s = decomposed(w, Rng(1, "x"), rounds=100, step=5, least=0.3)
    assert s.any() and s[s != 0].abs().min() >= 0.3
    assert torch.linalg.matrix_rank(w - decomposed(w, Rng(1, "x"), 100, 5, 0.0)) == 6


def test_formula(tmp_path):
    host = cw.Host(make("llama")[0])
    tenant = stir(host.add("t", "dsee", rank=2, entries=5, alpha=6))
    name = "model.layers.0.self_attn.v_proj"
    A, B, S, at = (tenant.pools[f"{name}.{k}"].detach() for k in ("A", "B", "S", "places"))
    want = (host.weight(name) + 3 * B @ A).flatten()
    want[at.long()] += 3 * S
    torch.testing.assert_close(host.merged("t")[f"{name}.weight"].flatten(), want, rtol=1e-4, atol=1e-5)
    assert at.unique().tolist() == at.tolist() and len(at) == 5
