"""IncreLoRA: which sites grow, written out a second time, and what a growing site computes."""

import pytest
import torch

import commonweight as cw
from commonweight.core.schedule import Moment, carried
from commonweight.methods.low_rank.increlora import Growth, IncreLoRA
from tests.models import make

SMALL = {"target": 2, "start": 1}
VARIANTS = [{"ranks": [["*q_proj", 1], ["*", 2]]}]


def done(pools, edit):
    """Pools after an edit: carried, then given values."""
    return {**pools, **{n: carried(pools[n], p) for n, p in edit.places.items()}, **edit.values}


def test_the_sites_that_matter_grow_to_the_target():
    config = IncreLoRA(target=4, top=0.34, begin=0.1, end=0.5, alpha=4)
    names = ("a", "b", "c")
    way = Growth(config, names, 3)
    g = torch.Generator().manual_seed(1)
    # a matrix of 5 x 6 has five directions at most
    pools = {f"{n}.{k}": torch.randn(s, generator=g) for n in names for k, s in (("A", (2, 6)), ("B", (5, 2)))}
    pools |= {f"{n}.d": torch.randn(2, generator=g) for n in names} | {f"{n}.gain": torch.ones(1) for n in names}
    state, edit = way.begin(None, pools, 20)
    assert edit.config is None
    mean, spread, ranks = [0.0] * 3, [0.0] * 3, [1, 1, 1]
    for step in range(1, 13):
        before, pools = pools, done(pools, edit)
        assert state["ranks"].tolist() == ranks
        for i, n in enumerate(names):
            d, gain, had = pools[f"{n}.d"], pools[f"{n}.gain"], len(before[f"{n}.d"])
            assert gain.item() == pytest.approx(1 / (ranks[i] + 1e-5))
            reserve = [1e-5] * min(1, 5 - ranks[i]) if step <= 10 else []
            assert d[ranks[i] :].tolist() == pytest.approx(reserve)
            was = min(had, ranks[i])
            assert torch.equal(d[:was], before[f"{n}.d"][:was])
            assert torch.equal(pools[f"{n}.A"][:was], before[f"{n}.A"][:was])
            assert pools[f"{n}.A"].all() and pools[f"{n}.B"].all() and pools[f"{n}.B"].shape == (5, len(d))
            if f"{n}.d" in edit.held:
                assert edit.held[f"{n}.d"].tolist() == [j >= ranks[i] for j in range(len(d))]
            if edit.config is not None:
                assert dict(edit.config.ranks)[n] == len(d)
        grads = {f"{n}.d": torch.randn(len(pools[f"{n}.d"]), generator=g) for n in names}
        state, edit = way.after(Moment(step, 20, pools, grads, {}), state)
        if step > 10:
            assert edit == type(edit)()
            continue
        for i, n in enumerate(names):
            s = sum(abs(float(e) * float(x)) for e, x in zip(pools[f"{n}.d"], grads[f"{n}.d"])) / 30**0.5
            mean[i] = 0.85 * mean[i] + 0.15 * s
            spread[i] = 0.85 * spread[i] + 0.15 * abs(s - mean[i])
        goal = 3 if step <= 2 else 3 + 9 * (step - 2) // 8
        while sum(ranks) < goal:
            best = max((i for i in range(3) if ranks[i] < 5), key=lambda i: mean[i] * spread[i])
            ranks[best] += 1
        assert way.settled(step, 20) == (step == 10)
    assert sum(ranks) == 12 and max(ranks) == 5


def test_formula_and_reserves():
    host = cw.Host(make("llama")[0], sites="*.q_proj")
    tenant = host.add("t", "increlora", target=2, start=1, alpha=6, ranks=[["*.0.*", 3], ["*", 1]])
    name = "model.layers.0.self_attn.q_proj"
    with torch.no_grad():
        tenant.pools[f"{name}.d"].copy_(torch.tensor([1.0, -2.0, 0.0]))
        tenant.pools[f"{name}.gain"].fill_(0.5)
    A, B = (tenant.pools[f"{name}.{k}"].detach() for k in "AB")
    want = host.weight(name) + 3 * (torch.outer(B[:, 0], A[0]) - 2 * torch.outer(B[:, 1], A[1]))
    torch.testing.assert_close(host.merged("t")[f"{name}.weight"], want, rtol=1e-4, atol=1e-5)
    found = tenant.method.penalty(tenant.config, tenant.plan, tenant.pools)
    sides = [m for n, p in tenant.pools.items() for m in ([p] if n[-1] == "A" else [p.T] if n[-1] == "B" else [])]
    far = [torch.linalg.matrix_norm(m @ m.T - torch.eye(len(m))) for m in sides]
    torch.testing.assert_close(found, 0.1 * sum(far) / len(far))
    small = host.compact("t")
    torch.testing.assert_close(host.merged("t")[f"{name}.weight"], want, rtol=1e-4, atol=1e-5)
    assert small.pools[f"{name}.A"].shape == (2, 32)


def test_a_fresh_tenant_has_the_first_directions_and_their_reserve():
    plan = cw.plan("increlora", [cw.Site("q", 16, 8)], target=6, start=2, add=3)
    assert plan.count() == 5 * (16 + 8 + 1)
    assert cw.plan("increlora", [cw.Site("q", 4, 8)], target=6, start=2, add=3).pools["q.A"].shape == (4, 8)


@pytest.mark.parametrize(
    "options, says",
    [({"target": 1, "start": 2}, "start=2 is more than target=1"), ({"most": 4}, "no option of IncreLoRA any more"),
     ({"begin": 0.6, "end": 0.5}, "more than all steps"), ({"ranks": [["*", -1]]}, "must be >= 0")],
)  # fmt: skip
def test_bad_options(options, says):
    with pytest.raises(cw.CommonweightError, match=says):
        cw.core.build(IncreLoRA, options)
