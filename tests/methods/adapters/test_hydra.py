"""Hydra against its merged form."""

import torch

import commonweight as cw
from tests.laws.subjects import stir
from tests.models import make

SMALL = {"rank": 2}
VARIANTS = [{"after": 3, "scale": 0.5}]


def test_formula():
    host = cw.Host(make("qwen")[0], sites="*.q_proj")
    tenant = stir(host.add("t", "hydra", rank=2, after=3, scale=0.5))
    for site in host.sites:
        A, B, C, D = (tenant.pools[f"{site.name}.{k}"].detach() for k in "ABCD")
        w, b = host.weight(site.name), host.model.get_submodule(site.name).bias
        merged = host.merged("t")
        torch.testing.assert_close(merged[f"{site.name}.weight"], w + 0.5 * (B @ A + D @ C @ w), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(merged[f"{site.name}.bias"], b + 0.5 * D @ C @ b, rtol=1e-4, atol=1e-5)


def test_count():
    assert cw.plan("hydra", [cw.Site("q", 48, 32)], rank=2, after=3).count() == 2 * (48 + 32) + 3 * 96
