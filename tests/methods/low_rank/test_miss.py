"""MiSS against the sum over shards, written out."""

import pytest
import torch

import commonweight as cw
from tests.laws.subjects import stir
from tests.models import make

SMALL = {"rank": 3}
NAME = "model.layers.1.mlp.up_proj"


@pytest.mark.parametrize("r", [4, 5])  # 5: the last shard is short
def test_formula(r):
    host = cw.Host(make("llama")[0])
    tenant = stir(host.add("t", "miss", rank=r))
    B, x = tenant.pools[f"{NAME}.B"].detach(), torch.randn(32)
    summed = torch.stack([x[i::r].sum() for i in range(r)])
    change = host.merged("t")[f"{NAME}.weight"] - host.weight(NAME)
    torch.testing.assert_close(change @ x, B @ summed, rtol=1e-4, atol=1e-5)


def test_only_the_block_is_counted_and_stored():
    plan = cw.plan("miss", [cw.Site("q", 48, 32)], rank=4)
    assert plan.count() == 4 * 48 and plan.nbytes == 4 * plan.count()
