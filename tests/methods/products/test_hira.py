"""HiRA against its formula."""

import torch

import commonweight as cw
from tests.laws.subjects import stir
from tests.models import make

SMALL = {"rank": 3}
NAME = "model.layers.1.mlp.up_proj"


def test_formula():
    host = cw.Host(make("llama")[0])
    tenant = stir(host.add("t", "hira", rank=3))
    A, B, w = tenant.pools[f"{NAME}.A"].detach(), tenant.pools[f"{NAME}.B"].detach(), host.weight(NAME)
    torch.testing.assert_close(host.merged("t")[f"{NAME}.weight"], w + w * (B @ A))


def test_count_is_loras():
    sites = [cw.Site("q", 48, 32)]
    assert cw.plan("hira", sites, rank=4).count() == 4 * (48 + 32)
