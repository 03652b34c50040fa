"""C-Poly against the paper's sum over skills, written out skill by skill."""

import math

import torch

import commonweight as cw
from tests.laws.subjects import stir
from tests.models import answer, make

SMALL = {"skills": 3, "private": 2, "rank": 2}
VARIANTS = [{"noise": False}]
NAME = "model.layers.1.mlp.up_proj"


def test_formula():
    host = cw.Host(make("llama")[0])
    tenant = stir(host.add("t", "cpoly", alpha=5.0, **SMALL), std=0.5)
    pools = {k.removeprefix(f"{NAME}."): v.detach() for k, v in tenant.pools.items() if k.startswith(NAME)}
    active = [1 / (1 + math.exp(-v)) for v in pools["common.weights"].tolist()]
    want = host.weight(NAME).clone()
    for i, z in enumerate(active):
        mine = slice(2 * i, 2 * i + 2)
        want += 5.0 / 2 * z / sum(active) * pools["common.B"][:, mine] @ pools["common.A"][mine]
    for j, w in enumerate(pools["private.weights"].tolist()):
        mine = slice(2 * j, 2 * j + 2)
        want += 5.0 / 2 * w * pools["private.B"][:, mine] @ pools["private.A"][mine]
    torch.testing.assert_close(host.merged("t")[f"{NAME}.weight"], want)


def test_training_draws_relaxed_bernoulli_weights_of_the_common_skills():
    """Gumbel-sigmoid by PyTorch's own distribution, from the same state of the generator; private weights stay."""
    model, _ = make("llama")
    host = cw.Host(model)
    tenant = stir(host.add("t", "cpoly", **SMALL), std=0.5)
    p = {k.removeprefix(f"{NAME}."): v.detach() for k, v in tenant.pools.items() if k.startswith(NAME)}
    layer, x = model.get_submodule(NAME), torch.randn(4, 7, 32)
    plain = x @ host.weight(NAME).T
    private = torch.cat([w * p["private.B"][:, 2 * j : 2 * j + 2] for j, w in enumerate(p["private.weights"])], 1)
    with torch.no_grad(), host.route("t"):
        for train in (True, False):
            layer.train(train)
            torch.manual_seed(3)
            got = layer(x)
            torch.manual_seed(3)
            z = p["common.weights"].sigmoid()
            if train:
                z = torch.distributions.RelaxedBernoulli(torch.tensor(1.0), logits=p["common.weights"]).rsample()
            z = (z / z.sum()).repeat_interleave(2)
            want = plain + 2 * (x @ p["common.A"].T * z) @ p["common.B"].T + 2 * x @ p["private.A"].T @ private.T
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_without_noise_training_is_evaluation():
    model, batch = make("bert")
    host = cw.Host(model)
    stir(host.add("t", "cpoly", noise=False, **SMALL), std=0.5)
    stir(host.add("u", "cpoly", **SMALL), std=0.5)
    for name, same in (("t", True), ("u", False)):
        with torch.no_grad(), host.route(name):
            answers = []
            for train in (False, True):
                for m in model.modules():
                    if isinstance(m, torch.nn.Linear):
                        m.train(train)
                answers.append(answer(model, batch))
        assert torch.equal(*answers) == same


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
