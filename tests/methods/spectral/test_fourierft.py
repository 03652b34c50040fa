"""FourierFT against a two-dimensional transform, written out."""

import math

import pytest
import torch

import commonweight as cw
from tests.laws.subjects import stir
from tests.models import make

SMALL = {"n_frequency": 20}
NAME = "model.layers.1.mlp.up_proj"


def test_formula():
    host = cw.Host(make("llama")[0])
    tenant = stir(host.add("t", "fourierft", n_frequency=20, scaling=30.0))
    c, places = tenant.pools[f"{NAME}.c"].detach(), tenant.pools["fourierft.64x32"].long()
    i, j = torch.arange(64.0)[:, None], torch.arange(32.0)
    turned = [(p // 32) * i / 64 + (p % 32) * j / 32 for p in places.tolist()]
    change = sum(value * torch.cos(2 * math.pi * t) for value, t in zip(c, turned, strict=True)) / (64 * 32)
    torch.testing.assert_close(host.merged("t")[f"{NAME}.weight"], host.weight(NAME) + 30.0 * change)


def test_count_and_places():
    sites = [cw.Site(f"{i}.q", 48, 32) for i in range(3)]
    plan = cw.plan("fourierft", sites, n_frequency=100)
    assert plan.count() == 300 and plan.readers()["fourierft.48x32"] == 3 and plan.nbytes == 1200


def test_more_than_there_are():
    with pytest.raises(cw.CommonweightError, match=r"q: n_frequency=65 is more than the 64 numbers of a weight"):
        cw.plan("fourierft", [cw.Site("q", 8, 8)], n_frequency=65)
