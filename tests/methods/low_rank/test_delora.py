"""DeLoRA against its formula."""

import torch

import commonweight as cw
from tests.laws.subjects import stir
from tests.models import make

SMALL = {"rank": 3}
VARIANTS = [{"stored": True}]
NAME = "model.layers.1.mlp.up_proj"


def test_formula_and_bound():
    host = cw.Host(make("llama")[0])
    tenant = stir(host.add("t", "delora", rank=3, bound=2.0))
    A, B, l = (tenant.pools[f"{NAME}.{k}"].detach() for k in "ABl")
    w = host.weight(NAME)
    parts = sum(torch.outer(B[:, i] / B[:, i].norm(), A[i] / A[i].norm()) for i in range(3))
    want = l / 3 * parts * w.norm(dim=0)
    change = host.merged("t")[f"{NAME}.weight"] - w
    torch.testing.assert_close(change, want, rtol=1e-4, atol=1e-5)
    assert (change / w.norm(dim=0)).norm() <= l.abs() + 1e-5


def test_count():
    plan = cw.plan("delora", [cw.Site("q", 48, 32)], rank=4)
    assert plan.count() == 4 * (48 + 32) + 1 and plan.nbytes == 4 * plan.count()
