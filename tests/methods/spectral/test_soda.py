"""SODA against torch.kron and the singular value decomposition written out."""

import math

import pytest
import torch

import commonweight as cw
from commonweight.methods.spectral.soda import sides
from tests.laws.subjects import stir
from tests.models import make

SMALL = {}
NAMES = ["model.layers.1.mlp.up_proj", "model.layers.0.mlp.down_proj"]


def rotation(vec, side):
    """(I - K) (I + K)^-1 of the skew matrix with this upper triangle."""
    K = torch.zeros(side, side, dtype=torch.float64)
    K[tuple(torch.triu_indices(side, side, 1))] = vec.double()
    K = K - K.T
    eye = torch.eye(side, dtype=torch.float64)
    return (eye - K) @ torch.linalg.inv(eye + K)


@pytest.mark.parametrize("name", NAMES)
def test_formula(name):
    host = cw.Host(make("llama")[0], sites=name)
    tenant = stir(host.add("t", "soda"), std=0.3)
    pools = {n.removeprefix(f"{name}."): p.detach() for n, p in tenant.pools.items()}
    w = host.weight(name).bfloat16().double()
    u, s, v = torch.linalg.svd(w, full_matrices=False)
    u = u * (u * pools["U"].double()).sum(0).sign()
    v = v * (v * pools["V"].double()).sum(1, keepdim=True).sign()
    R = torch.ones(1, 1, dtype=torch.float64)
    for i, b in enumerate(sides(w.shape[1])):
        R = torch.kron(R, rotation(pools[f"Q{i}"][0], b) if b > 1 else torch.ones(1, 1, dtype=torch.float64))
    change = u * (torch.relu(s + pools["delta"].double()) - s) @ v
    want = (host.weight(name).double() + change) @ R.T
    torch.testing.assert_close(host.merged("t")[f"{name}.weight"].double(), want, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(R @ R.T, torch.eye(len(R), dtype=torch.float64))
    assert (s + pools["delta"].double()).min() < 0, "a value that relu cuts is among them"


@pytest.mark.parametrize(
    ("width", "found"),
    [(768, (6, 8, 16)), (2048, (4, 8, 64)), (384, (6, 8, 8)), (1, (1, 1, 1)), (13, (1, 1, 13)), (64, (4, 4, 4))],
)
def test_sides(width, found):
    assert sides(width) == found and math.prod(found) == width


def test_count():
    plan = cw.plan("soda", [cw.Site("q", 1280, 1280)])
    assert plan.count() == 1280 + (16 - 4) // 2 + (256 - 16) // 2 + (400 - 20) // 2


def test_whole_matrices_turn_as_cayley_s_do():
    """`turns=stiefel` with the orthogonal matrices that the other form makes of its numbers."""
    host = cw.Host(make("llama")[0], sites="|".join(NAMES))
    plain, whole = stir(host.add("p", "soda"), std=0.3), host.add("w", "soda", turns="stiefel")
    for n, p in whole.named_parameters():
        q = plain.pools[n].detach()
        p.data.copy_(rotation(q[0], p.shape[-1]) if ".Q" in n else q)
    for name in NAMES:
        one, other = (host.merged(t)[f"{name}.weight"] for t in ("p", "w"))
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_count_of_whole_matrices():
    plan = cw.plan("soda", [cw.Site("q", 1280, 1280)], turns="stiefel")
    assert plan.count() == 1280 + 16 + 256 + 400
