"""GraLoRA against its blocks, written out."""

import pytest
import torch

import commonweight as cw
from tests.laws.subjects import stir
from tests.models import make

SMALL = {"rank": 4}
VARIANTS = [{"rank": 8, "blocks": 4, "hybrid": 2}]
NAME = "model.layers.1.mlp.up_proj"


def test_formula():
    host = cw.Host(make("llama")[0])
    tenant = stir(host.add("t", "gralora", rank=4, blocks=2, hybrid=3, alpha=14.0))
    A, B, G_A, G_B = (tenant.pools[f"{NAME}.{k}"].detach() for k in ("A", "B", "G_A", "G_B"))
    change = torch.zeros(64, 32)
    for m in range(2):  # output block, which reads ranks 2 m and 2 m + 1 of every input block
        for n in range(2):
            small = B[m, 2 * n : 2 * n + 2].T @ A[n, :, 2 * m : 2 * m + 2].T
            change[32 * m : 32 * m + 32, 16 * n : 16 * n + 16] = small
    want = host.weight(NAME) + 2.0 * (change + G_B @ G_A)
    torch.testing.assert_close(host.merged("t")[f"{NAME}.weight"], want)
    assert torch.linalg.matrix_rank(change, rtol=1e-4) == 8


def test_count_is_loras():
    sites = [cw.Site("q", 48, 32)]
    assert cw.plan("gralora", sites, rank=4).count() == cw.plan("lora", sites, rank=4).count()


def test_what_does_not_fit():
    with pytest.raises(cw.CommonweightError, match="GraLoRA: rank=5 is not a multiple of blocks=2"):
        cw.plan("gralora", [cw.Site("q", 8, 8)], rank=5)
    with pytest.raises(cw.CommonweightError, match=r"q: widths 8 and 9 are not both multiples of blocks=2; .* \[1\]"):
        cw.plan("gralora", [cw.Site("q", 9, 8)], rank=4)
