"""APET: the budget, and what it is spent on."""

import pytest
import torch

import commonweight as cw
from commonweight.methods.selective.apet import spent
from tests.laws.subjects import stir
from tests.models import make

SMALL = {"rank": 12, "new": 1.0}
VARIANTS = [{"new": 0.5}, {"new": 0.5, "draw": 1}]


def test_what_fits_is_taken_in_an_order_by_chance():
    sizes, budget = [5, 40, 7, 12, 3, 90], 16
    for draw in range(5):
        order, left, want = cw.core.Rng(draw, "x").permutation(6).tolist(), budget, []
        for i in order:
            if sizes[i] <= left:
                want.append(i)
                left -= sizes[i]
        assert spent(sizes, budget, draw, "x") == sorted(want)
    assert len({tuple(spent(sizes, budget, d, "x")) for d in range(5)}) > 1


@pytest.mark.parametrize("draw", range(4))
def test_the_budget_is_lora_s(draw):
    sites = [cw.Site(f"m.{i}.q", 64, 48) for i in range(6)] + [cw.Site("m.o", 32, 32, bias=False)]
    most = cw.plan("lora", sites, rank=16).count()
    plan = cw.plan("apet", sites, rank=16, draw=draw)
    assert 0.6 * most < plan.count() <= most
    assert {u.site for u in cw.plan("apet", sites, rank=16, new=1.0).uses} == {s.name for s in sites}


def test_formula():
    host = cw.Host(make("llama")[0])
    tenant = stir(host.add("t", "apet", rank=12, alpha=6))
    for n, w in host.merged("t").items():
        site = n.removesuffix(".weight")
        want = host.weight(site).clone()
        p = {k: tenant.pools[f"{site}.{k}"].detach() for k in ("dw", "A", "B") if f"{site}.{k}" in tenant.pools}
        want = want + p.get("dw", 0) + (0.5 * p["B"] @ p["A"] if "A" in p else 0)
        torch.testing.assert_close(w, want, rtol=1e-4, atol=1e-5)


def test_nothing_fits():
    with pytest.raises(cw.CommonweightError, match="apet: no weight, bias or pair of 1 sites fits"):
        cw.plan("apet", [cw.Site("q", 64, 64, bias=False)], rank=1)
