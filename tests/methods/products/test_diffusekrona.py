"""DiffuseKronA against torch.kron, and against the released layer's two products written out."""

import pytest
import torch

import commonweight as cw
from tests.laws.subjects import stir
from tests.models import make

SMALL = {"a1": 4, "a2": 2}
VARIANTS = [{"compat": "official"}, {"a1": 5, "a2": 3}]
NAME = "model.layers.1.mlp.up_proj"


def released(x, A, B):
    """The input column by column as a matrix, the small products, the outputs row by row."""
    columns = x.reshape(*x.shape[:-1], A.shape[1], B.shape[1]).mT  # (b2, a2)
    return (B @ columns @ A.T).flatten(-2)


@pytest.mark.parametrize("options", [SMALL, {**SMALL, "compat": "official"}, {"a1": 5, "a2": 3}])
def test_formula(options):
    host = cw.Host(make("llama")[0])
    tenant = stir(host.add("t", "diffusekrona", scale=2.0, **options))
    A, B = (tenant.pools[f"{NAME}.{k}"].detach() for k in "AB")
    change = (host.merged("t")[f"{NAME}.weight"] - host.weight(NAME)) / 2.0
    plain = torch.kron(A, B)
    if options.get("compat") == "official":
        a, b = len(A), len(B)
        plain = torch.stack([plain[j * b + i] for i in range(b) for j in range(a)])
        torch.testing.assert_close(change.T, released(torch.eye(plain.shape[1]), A, B))
    torch.testing.assert_close(change, plain)


def test_count_of_the_paper_and_the_start():
    plan = cw.plan("diffusekrona", [cw.Site("q", 1280, 1280)])
    assert plan.count() == 512 + 3200
    assert [p.shape for p in plan.pools.values()] == [(64, 8), (20, 160)]


def test_sides_that_do_not_divide_are_the_next_smaller_that_do():
    plan = cw.plan("diffusekrona", [cw.Site("k", 192, 90)], a1=100, a2=8)
    assert [p.shape for p in plan.pools.values()] == [(96, 6), (2, 15)]
