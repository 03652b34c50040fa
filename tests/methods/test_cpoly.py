"""C-Poly against the paper's sum over skills, written out skill by skill."""

import math

import torch

import commonweight as cw
from tests.laws.subjects import stir
from tests.models import make

SMALL = {"skills": 3, "private": 2, "rank": 2}
NAME = "model.layers.1.mlp.up_proj"


def test_formula():
    host = cw.Host(make("llama")[0])
    tenant = stir(host.add("t", "cpoly", alpha=5.0, **SMALL), std=0.5)
    pools = {k.removeprefix(f"{NAME}."): v.detach() for k, v in tenant.pools.items() if k.startswith(NAME)}
    active = [1 / (1 + math.exp(-v)) for v in pools["common.weights"].tolist()]
    want = host.weight(NAME).clone()
    for i, z in enumerate(active):
        want += 5.0 / 2 * z / sum(active) * pools["common.B"][i] @ pools["common.A"][2 * i : 2 * i + 2]
    for j, w in enumerate(pools["private.weights"].tolist()):
        want += 5.0 / 2 * w * pools["private.B"][j] @ pools["private.A"][2 * j : 2 * j + 2]
    torch.testing.assert_close(host.merged("t")[f"{NAME}.weight"], want)


def test_counts():
    sites = [cw.Site(f"layers.{i}.{n}_proj", 1024, 1024) for i in range(24) for n in "qkvo"]
    plan = cw.plan("cpoly", sites, skills=3, private=1, rank=8)
    assert plan.count() == 96 * 4 * (8 * 2048 + 1)
    own = sum(p.numel for p in plan.pools.values() if p.scope == "tenant")
    assert own == 96 * (8 * 2048 + 1 + 3), "one LoRA and the tenant's row of the assignment matrix"


def test_two_tenants_have_the_common_skills_in_common():
    host = cw.Host(make("llama")[0])
    one, two = (host.add(n, "cpoly", common="tasks", seed=i, **SMALL) for i, n in enumerate(("one", "two")))
    same = {k for k in one.pools if one.pools[k] is two.pools[k]}
    assert same == {k for k in one.pools if k.endswith(("common.A", "common.B"))}
    host.freeze("tasks")
    assert two.count() == sum(two.pools[k].numel() for k in two.pools if k not in same)
