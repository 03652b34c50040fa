"""HRA against its reflections, written out."""

import pytest
import torch

import commonweight as cw
from tests.laws.subjects import stir
from tests.models import make

SMALL = {"rank": 4}
NAME = "model.layers.1.mlp.up_proj"


def test_formula():
    host = cw.Host(make("llama")[0])
    tenant = stir(host.add("t", "hra", rank=4))
    R = torch.eye(32)
    for u in tenant.pools[f"{NAME}.U"].detach().T:
        R = R @ (torch.eye(32) - 2 * torch.outer(u, u) / (u @ u))
    torch.testing.assert_close(host.merged("t")[f"{NAME}.weight"], host.weight(NAME) @ R, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(R @ R.T, torch.eye(32), rtol=0, atol=1e-5)


def test_count():
    assert cw.plan("hra", [cw.Site("q", 48, 32)], rank=4).count() == 4 * 32


def test_an_odd_number():
    with pytest.raises(cw.CommonweightError, match="HRA: rank=3 is odd; reflections start in pairs"):
        cw.plan("hra", [cw.Site("q", 8, 8)], rank=3)
