"""LoKr against torch.kron."""

import pytest
import torch

import commonweight as cw
from commonweight.methods.products.lokr import split
from tests.laws.subjects import stir
from tests.models import make

SMALL = {"rank": 2}
VARIANTS = [{"rank": 1, "factor": 4, "both": True}, {"rank": 16}]
NAME = "model.layers.1.mlp.up_proj"


@pytest.mark.parametrize("options", [{"rank": 2}, *VARIANTS])
def test_formula(options):
    host = cw.Host(make("llama")[0])
    tenant = stir(host.add("t", "lokr", alpha=6.0, **options))
    mine = {n.removeprefix(f"{NAME}."): p.detach() for n, p in tenant.pools.items() if n.startswith(f"{NAME}.")}
    left = mine["L"] if "L" in mine else mine["L_a"] @ mine["L_b"]
    right = mine["R"] if "R" in mine else mine["R_a"] @ mine["R_b"]
    change = 6.0 / options["rank"] * torch.kron(left, right)
    torch.testing.assert_close(host.merged("t")[f"{NAME}.weight"], host.weight(NAME) + change)


@pytest.mark.parametrize(
    ("width", "factor", "sides"),
    [(256, -1, (16, 16)), (128, -1, (8, 16)), (127, -1, (1, 127)), (128, 4, (4, 32)), (36, 5, (4, 9)), (12, 8, (3, 4))],
)
def test_split(width, factor, sides):
    assert split(width, factor) == sides


def test_count():
    sites = [cw.Site("q", 4096, 4096)]
    assert cw.plan("lokr", sites, rank=8).count() == 64 * 64 + 8 * (64 + 64)


def test_factor_zero():
    with pytest.raises(cw.CommonweightError, match="LoKr: factor is 0; choose -1, or a divisor"):
        cw.plan("lokr", [cw.Site("q", 8, 8)], factor=0)
