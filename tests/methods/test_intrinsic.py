"""The random subspace of intrinsic dimension, with P written out as a matrix."""

import pytest
import torch

import commonweight as cw
from tests.laws.subjects import stir
from tests.models import make

SMALL = {"dim": 50, "rank": 3}


def projection(tenant, names, d):
    """P (D, d), row by row."""
    rows = []
    for name in names:
        for code in tenant.pools[f"{name}.index"].reshape(-1).tolist():
            row = torch.zeros(d)
            row[code % d] = 1.0 if code < d else -1.0
            rows.append(row)
    return torch.stack(rows) * (d / len(rows)) ** 0.5


@pytest.mark.parametrize("space", ["weight", "lora"])
def test_formula(space):
    model, _ = make("llama")
    host = cw.Host(model, sites="*.q_proj|*.v_proj")
    tenant = stir(host.add("t", "intrinsic", dim=20, space=space, rank=2, alpha=3.0))
    names = [u.site for u in tenant.plan.uses]
    theta = tenant.pools["theta"].detach()
    moved = projection(tenant, names, 20) @ theta
    merged = host.merged("t")
    for name in names:
        index = tenant.pools[f"{name}.index"]
        mine, moved = moved[: index.numel()].view(index.shape), moved[index.numel() :]
        delta = mine if space == "weight" else 1.5 * mine @ tenant.pools[f"{name}.A"]
        torch.testing.assert_close(merged[f"{name}.weight"], host.weight(name) + delta)


def test_the_columns_of_p_have_about_unit_length_and_little_overlap():
    model, _ = make("llama")
    tenant = cw.Host(model).add("t", "intrinsic", dim=10, space="weight")
    p = projection(tenant, [u.site for u in tenant.plan.uses], 10)
    torch.testing.assert_close(p.T @ p, torch.eye(10), rtol=0, atol=0.15)


@pytest.mark.parametrize("space", ["weight", "lora"])
def test_count_and_bytes_are_d(space):
    sites = [cw.Site(f"layers.{i}.q_proj", 4096, 4096) for i in range(32)]
    plan = cw.plan("intrinsic", sites, dim=750, space=space)
    assert plan.count() == 750 and plan.nbytes == 3000
