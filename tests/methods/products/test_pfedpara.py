"""pFedPara against the entrywise product, written out."""

import torch

import commonweight as cw
from tests.laws.subjects import stir
from tests.models import make

SMALL = {"rank": 3}
NAME = "model.layers.1.mlp.up_proj"


def test_formula():
    host = cw.Host(make("llama")[0])
    tenant = stir(host.add("t", "pfedpara", rank=3, alpha=6.0))
    A1, A2, B1, B2 = (tenant.pools[f"{NAME}.{k}"].detach() for k in ("A1", "A2", "B1", "B2"))
    change = 2.0 * (B1.T @ A1) * (B2.T @ A2 + 1)
    torch.testing.assert_close(host.merged("t")[f"{NAME}.weight"], host.weight(NAME) + change)


def test_half_is_shared():
    plan = cw.plan("pfedpara", [cw.Site("q", 48, 32)], rank=4)
    shared = sum(p.numel for p in plan.pools.values() if p.scope == "shared")
    assert 2 * shared == plan.count() == 2 * 4 * (48 + 32)
