"""LoHa against the entrywise product, written out."""

import torch

import commonweight as cw
from tests.laws.subjects import stir
from tests.models import make

SMALL = {"rank": 3}
NAME = "model.layers.1.mlp.up_proj"


def test_formula():
    host = cw.Host(make("llama")[0])
    tenant = stir(host.add("t", "loha", rank=3, alpha=6.0))
    A1, A2, B1, B2 = (tenant.pools[f"{NAME}.{k}"].detach() for k in ("A1", "A2", "B1", "B2"))
    change = 2.0 * (B1.T @ A1) * (B2.T @ A2)
    torch.testing.assert_close(host.merged("t")[f"{NAME}.weight"], host.weight(NAME) + change)
    assert torch.linalg.matrix_rank(change, rtol=1e-4) == 9


def test_count_is_that_of_rank_2r():
    sites = [cw.Site("q", 48, 32)]
    assert cw.plan("loha", sites, rank=4).count() == cw.plan("lora", sites, rank=8).count() == 2 * 4 * (48 + 32)
