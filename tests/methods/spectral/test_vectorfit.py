"""VectorFit against the product of its parts."""

import torch

import commonweight as cw
from tests.laws.subjects import stir
from tests.models import make

SMALL = {}
VARIANTS = [{"bias": False}]


def test_formula():
    host = cw.Host(make("qwen")[0], sites="*.q_proj")
    tenant = stir(host.add("t", "vectorfit"))
    for site in host.sites:
        w = host.weight(site.name)
        u, s, v = torch.linalg.svd(w.bfloat16().double(), full_matrices=False)
        d, b = (tenant.pools[f"{site.name}.{k}"].detach() for k in "db")
        want = w.double() + u @ torch.diag(d.double()) @ v
        merged = host.merged("t")
        torch.testing.assert_close(merged[f"{site.name}.weight"].double(), want, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(merged[f"{site.name}.bias"], host.model.get_submodule(site.name).bias + b)
        assert len(s) == len(d)


def test_count():
    assert cw.plan("vectorfit", [cw.Site("q", 48, 32)]).count() == 32 + 48
