"""IncreLoRA: which sites grow, written out a second time, and what a growing site computes."""

import pytest
import torch

import commonweight as cw
from commonweight.core.schedule import Moment
from commonweight.methods.low_rank.increlora import Growth, IncreLoRA
from tests.models import make

SMALL = {"target": 2, "start": 1}
VARIANTS = [{"ranks": [["*q_proj", 1], ["*", 2]]}]


def test_the_sites_that_matter_grow_to_the_target():
    config = IncreLoRA(target=3, most=4, top=0.34, begin=0.1, end=0.5, alpha=4)
    names = ("a", "b", "c")
    way = Growth(config, names)
    g = torch.Generator().manual_seed(1)
    pools = {f"{n}.{k}": torch.randn(s, generator=g) for n in names for k, s in (("A", (4, 6)), ("B", (5, 4)))}
    pools |= {f"{n}.d": torch.randn(4, generator=g) for n in names} | {f"{n}.gain": torch.ones(1) for n in names}
    state, edit = way.begin(None, pools, 20)
    mean, spread, ranks = [0.0] * 3, [0.0] * 3, [1, 1, 1]
    for step in range(1, 13):
        assert state["ranks"].tolist() == ranks
        for i, n in enumerate(names):
            d, gain = edit.values[f"{n}.d"], edit.values[f"{n}.gain"]
            assert gain.item() == pytest.approx(1 / (ranks[i] + 1e-5))
            reserve = [1e-5] * min(1, 4 - ranks[i]) if step <= 10 else []
            assert d[ranks[i] :].tolist() == pytest.approx(reserve + [0.0] * (4 - ranks[i] - len(reserve)))
            assert torch.equal(d[: ranks[i]], pools[f"{n}.d"][: ranks[i]])
        pools |= edit.values
        grads = {f"{n}.d": torch.randn(4, generator=g) for n in names}
        state, edit = way.after(Moment(step, 20, pools, grads, {}), state)
        if step > 10:
            continue
        for i, n in enumerate(names):
            s = sum(abs(float(e) * float(x)) for e, x in zip(pools[f"{n}.d"], grads[f"{n}.d"])) / 30**0.5
            mean[i] = 0.85 * mean[i] + 0.15 * s
            spread[i] = 0.85 * spread[i] + 0.15 * abs(s - mean[i])
        goal = 3 if step <= 2 else 3 + 6 * (step - 2) // 8
        while sum(ranks) < goal:
            best = max((i for i in range(3) if ranks[i] < 4), key=lambda i: mean[i] * spread[i])
            ranks[best] += 1
        assert way.settled(step, 20) == (step == 10)
    assert sum(ranks) == 9 and max(ranks) == 4


def test_formula_and_reserves():
    host = cw.Host(make("llama")[0], sites="*.q_proj")
    tenant = host.add("t", "increlora", target=2, start=1, alpha=6)
    name = "model.layers.0.self_attn.q_proj"
    with torch.no_grad():
        tenant.pools[f"{name}.d"].copy_(torch.tensor([1.0, -2.0, 0.0, 0.0]))
        tenant.pools[f"{name}.gain"].fill_(0.5)
    A, B = (tenant.pools[f"{name}.{k}"].detach() for k in "AB")
    want = host.weight(name) + 3 * (torch.outer(B[:, 0], A[0]) - 2 * torch.outer(B[:, 1], A[1]))
    torch.testing.assert_close(host.merged("t")[f"{name}.weight"], want, rtol=1e-4, atol=1e-5)
    found = tenant.method.penalty(tenant.config, tenant.plan, tenant.pools)
    far = [torch.linalg.matrix_norm(m @ m.T - torch.eye(2)) for m in (A[:2], B[:, :2].T)]
    torch.testing.assert_close(found, 0.1 * sum(far) / 2)  # other sites have no direction yet
    small = host.compact("t")
    torch.testing.assert_close(host.merged("t")[f"{name}.weight"], want, rtol=1e-4, atol=1e-5)
    assert small.pools[f"{name}.A"].shape == (2, 32)


@pytest.mark.parametrize(
    "options, says",
    [({"target": 1, "start": 2}, "must not fall"), ({"most": 4}, "must not fall"),
     ({"begin": 0.6, "end": 0.5}, "more than all steps"), ({"ranks": [["*", -1]]}, "must be >= 0")],
)  # fmt: skip
def test_bad_options(options, says):
    with pytest.raises(cw.CommonweightError, match=says):
        IncreLoRA(**options)
