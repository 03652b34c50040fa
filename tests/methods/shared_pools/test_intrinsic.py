"""The random subspace of intrinsic dimension, with P written out as a matrix."""

import pytest
import torch

import commonweight as cw
from tests.laws.subjects import stir
from tests.models import answer, make

SMALL = {"dim": 50, "rank": 3}
VARIANTS = [{"space": "weight"}, {"space": "core"}]


def projection(tenant, names, d):
    """P (D, d), row by row."""
    rows = []
    for name in names:
        for code in tenant.pools[f"{name}.index"].reshape(-1).tolist():
            row = torch.zeros(d)
            row[code % d] = 1.0 if code < d else -1.0
            rows.append(row)
    return torch.stack(rows) * (d / len(rows)) ** 0.5


@pytest.mark.parametrize("space", ["weight", "lora", "core"])
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
        delta = tenant.pools[f"{name}.B"] @ delta if space == "core" else delta
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


@pytest.mark.parametrize("options", [{"method": "uni-lora", "dim": 40}, {"method": "intrinsic", "dim": 40}])
def test_a_one_vector_tenant_stores_its_vector_alone(options, tmp_path):
    """What the vector moves comes from the seed: nothing is shared on disk, and a further tenant costs d numbers."""
    host, c = cw.Host(make("llama")[0]), cw.Commons(tmp_path / "store")
    for seed, name in enumerate(("first", "late")):
        tenant = stir(host.add(name, **options, rank=2, seed=seed), seed)
        assert tenant.count() == 40 and tenant.nbytes == 160
        c.publish(host, name)
    assert all(len(record.pools) == 1 for record in c.list())
    assert all(0 <= r.nbytes - r.marginal_bytes < 1024 for r in c.list()), "what both say alike, sites and options"


def test_a_late_tenant_in_a_trained_core_costs_its_vector_alone(tmp_path):
    model, batch = make("llama")
    host, c = cw.Host(model), cw.Commons(tmp_path / "store")
    options = {"method": "intrinsic", "space": "core", "dim": 40, "rank": 4, "common": "tasks"}
    first = stir(host.add("first", **options))
    host.freeze("tasks")
    before = {n: p.clone() for n, p in host.common("tasks").pools.items()}
    late = host.add("late", **options, seed=7)
    assert [n for n, _ in late.named_parameters()] == ["theta"] and late.private_nbytes == 160
    assert not torch.equal(
        late.pools["model.layers.0.mlp.up_proj.index"], first.pools["model.layers.0.mlp.up_proj.index"]
    )
    with host.route("late"):
        answer(model, batch).square().mean().backward()
    torch.optim.SGD(late.param_groups(0.1)).step()
    assert late.pools["theta"].count_nonzero() == 40
    assert all(torch.equal(p, before[n]) for n, p in host.common("tasks").pools.items())
    for name in ("first", "late"):
        c.publish(host, name)
    own = next(r for r in c.list() if r.name == "late").marginal_bytes
    assert own < 8192 < sum(p.nbytes for p in before.values())
