"""ResLoRA: a layer's weight has the updates of the layers before it."""

import pytest
import torch

import commonweight as cw
from tests.laws.subjects import stir
from tests.models import make

SMALL = {"rank": 3}
VARIANTS = [{"previous": None}]


@pytest.mark.parametrize("previous", [0, 1, None])
def test_formula(previous):
    host = cw.Host(make("llama")[0])
    tenant = stir(host.add("t", "reslora", rank=3, alpha=6, previous=previous))
    merged = host.merged("t")
    for part in ("self_attn.q_proj", "mlp.down_proj"):
        names = [s.name for s in host.sites if s.name.endswith(part)]
        low = [2.0 * tenant.pools[f"{n}.B"].detach() @ tenant.pools[f"{n}.A"].detach() for n in names]
        for i, n in enumerate(names):
            first = 0 if previous is None else max(0, i - previous)
            torch.testing.assert_close(merged[f"{n}.weight"], host.weight(n) + sum(low[first : i + 1]))


def test_chains_end_where_shapes_differ():
    sites = [cw.Site(f"layers.{i}.q", out, 8) for i, out in enumerate((8, 8, 16, 16, 16))]
    plan = cw.plan("reslora", sites, rank=2, previous=None)
    assert plan.count() == 2 * (16 + 16 + 24 * 3) and len(plan.uses) == 3 + 6
    assert plan.readers()["layers.2.q.A"] == 3 and plan.readers()["layers.1.q.A"] == 1
