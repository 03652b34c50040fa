"""Polyhistor: matrices with torch.kron and plain sums; tasks of a common."""

import pytest
import torch
from torch.nn import functional as F

import commonweight as cw
from tests.laws.subjects import stir
from tests.models import answer, make

SMALL = {"code": 3, "size": 4, "rank": 2}
VARIANTS = [{"stretch": 1}]
NAME = "model.layers.1.mlp.down_proj"


@pytest.mark.parametrize("stretch", [1, 2])
def test_formula(stretch):
    """stretch = 1: with one kernel of one number, a plain factorised hypernetwork."""
    model, _ = make("llama")
    host = cw.Host(model)
    tenant = stir(host.add("t", "polyhistor", stretch=stretch, act="relu", **SMALL), std=0.3)
    p = {k: v.detach() for k, v in tenant.pools.items()}
    e, w = p["code"], {}
    for slot, rows, cols in (("down", 4, 32), ("up", 32, 4)):
        left = sum(e[i] * p[f"{slot}.32.H1"][i] for i in range(3))
        right = sum(e[i] * p[f"{slot}.32.H2"][i] for i in range(3))
        scale, small = p[f"{NAME}.{slot}.S"], left @ right
        full = torch.zeros(rows, cols)
        r, c = small.shape
        for i in range(stretch):
            for j in range(stretch):
                full[i * r : (i + 1) * r, j * c : (j + 1) * c] = scale[i, j] * small
        w[slot] = full
    layer, x = model.get_submodule(NAME), torch.randn(2, 5, 64)
    with torch.no_grad():
        y = layer(x)
        want = y + F.relu(y @ w["down"].T + p[f"{NAME}.down_bias"]) @ w["up"].T + p[f"{NAME}.up_bias"]
        with host.route("t"):
            torch.testing.assert_close(layer(x), want)


def test_another_code_changes_that_task_alone():
    model, batch = make("llama")
    host = cw.Host(model)
    one, two = (stir(host.add(n, "polyhistor", common="tasks", **SMALL), seed=i) for i, n in enumerate("ab"))
    assert one.pools["down.32.H1"] is two.pools["down.32.H1"] and one.pools["code"] is not two.pools["code"]

    def said(name):
        with torch.no_grad(), host.route(name):
            return answer(model, batch)

    before = said("a"), said("b")
    with torch.no_grad():
        two.pools["code"].mul_(-2)
    assert torch.equal(said("a"), before[0]) and not torch.allclose(said("b"), before[1])


@pytest.mark.parametrize("method, options", [("polyhistor", SMALL), ("recurrent", {"hidden": 6, "inputs": 3})])
def test_a_few_steps_lower_the_loss(method, options):
    model, batch = make("llama")
    host = cw.Host(model)
    tenant = host.add("t", method, **options)
    optimizer = torch.optim.Adam(tenant.parameters(), lr=1e-2)
    losses = []
    for _ in range(12):
        with host.route("t"):
            loss = model(**batch, labels=batch["input_ids"]).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.97 * losses[0]


def test_a_stretch_that_does_not_divide():
    with pytest.raises(cw.CommonweightError, match=r"width 32 or size 4 is no multiple of stretch=3; choose another"):
        cw.plan("polyhistor", [cw.Site("l.0.down", 32, 64, "linear", "down")], stretch=3, size=4)
