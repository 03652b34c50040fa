"""MoLA against its formula, token by token."""

import pytest
import torch

import commonweight as cw

from .tokens import largest, mixture, site

SMALL = {"rank": 2, "experts": (2, 3)}
SOFT = {**SMALL, "active": 3}


def test_formula():
    pools, x, got = site("mola", rank=2, experts=(4,), alpha=6.0)
    want = 3.0 * mixture(x, lambda z: largest(torch.softmax(z, -1), 2), pools, 2)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    assert want.abs().max() > 0.01


@pytest.mark.parametrize("layers, wanted", [(4, [2, 4, 6, 8]), (8, [2, 2, 4, 4, 6, 6, 8, 8]), (2, [2, 6])])
def test_upper_layers_have_more(layers, wanted):
    sites = [cw.Site(f"model.layers.{i}.{p}", 8, 8) for i in range(layers) for p in ("q", "k")]
    plan = cw.plan("mola", sites, rank=2)
    assert [plan.pools[f"{s.name}.router"].shape[0] for s in sites] == [n for n in wanted for _ in "qk"]


def test_a_layer_with_fewer_takes_all_of_them():
    plan = cw.plan("mola", [cw.Site("layers.0.q", 8, 8), cw.Site("layers.1.q", 8, 8)], experts=(1, 2), active=2)
    assert [u.bind.k for u in plan.uses] == [1, 2]


def test_what_does_not_go():
    with pytest.raises(cw.CommonweightError, match="each 1 or more"):
        cw.plan("mola", [cw.Site("q", 8, 8)], experts=(0, 2))


def test_the_code_counts_padding_in_the_load():
    """mola_modeling_llama_hacked.py @01785c8: 1e-3 E sum_i f_i P_i of a layer's routers as one, padding among them.
    Ours is the same over the tokens that are none."""
    from commonweight.methods.said import Said

    g = torch.Generator().manual_seed(2)
    z = {f"model.layers.0.{n}": torch.randn(5, 4, generator=g) for n in ("q", "k")}
    real = torch.tensor([1.0, 1, 1, 0, 0])

    def code(z):
        p = torch.cat([*z.values()]).softmax(-1)
        chosen = torch.zeros(4)
        for t in p:
            chosen[t.topk(2).indices] += 1
        return 1e-3 * 4 * float((chosen / chosen.sum() * p.mean(0)).sum())

    ours = cw.methods.get("mola").router_loss(cw.methods.get("mola").config(experts=(4,), balance=1e-3))
    assert ours is not None
    whole = {n: Said(t, torch.ones(5)) for n, t in z.items()}
    assert float(ours(whole)) == pytest.approx(code(z), rel=1e-5)
    padded = float(ours({n: Said(t, real) for n, t in z.items()}))
    assert padded == pytest.approx(code({n: t[:3] for n, t in z.items()}), rel=1e-5)
    assert abs(padded - code(z)) > 1e-6
