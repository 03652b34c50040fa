"""IST: which layers train, and how what they are worth follows the loss."""

import math

import pytest
import torch

import commonweight as cw
from commonweight.core.schedule import Moment
from commonweight.methods.low_rank.ist import IST, Layers, by_layer
from tests.laws.subjects import stir
from tests.models import make

SMALL = {"rank": 2, "every": 2}

NAMES = [tuple(f"m.layers.{i}.q.{k}" for k in "AB") for i in range(8)]


def test_layers_of_pools():
    names = ["m.layers.2.q.A", "m.layers.2.k.A", "m.layers.10.q.A", "head.A"]
    assert by_layer(names) == [names[:2], [names[2]], [names[3]]]


def test_two_of_eight_layers_train_and_others_each_step():
    way = Layers(IST(every=100), tuple(NAMES), 1)
    state, edit = way.begin(None, {}, 50)
    every = {n for names in NAMES for n in names}
    seen = [every - edit.resting]
    for step in range(1, 50):
        state, edit = way.after(Moment(step, 50, {}, {}, {}), state)
        seen.append(every - edit.resting)
    assert all(len(s) == 4 for s in seen) and set.union(*seen) == every and len({*map(frozenset, seen)}) > 10
    assert not way.after(Moment(50, 50, {}, {}, {}), state)[1].resting


def test_importance_follows_the_reward():
    way = Layers(IST(every=2, draws=3, pace=10.0), tuple(NAMES), 1)
    start = torch.linspace(-1, 1, 8, dtype=torch.float64)
    pools, losses, asked = {n: torch.ones(2) for names in NAMES for n in names}, [0.5, 1.0, 2.0], []

    def loss(values):
        assert all(n.endswith(".B") and (v == 0.25).all() for n, v in values.items())
        asked.append([i for i, (_, b) in enumerate(NAMES) if b in values])
        return losses[len(asked) - 1]

    state, _ = way.after(Moment(2, 50, pools, {}, {}, loss), {"importance": start})
    assert [len(a) for a in asked] == [4, 4, 4]
    rewards = [math.exp(-v) for v in losses]
    want = start.clone()
    for layers, r in zip(asked, rewards):
        for i in layers:
            p = 1 / (1 + math.exp(-start[i].item()))
            want[i] += 10 * (r - sum(rewards) / 3) * p * (1 - p)
    torch.testing.assert_close(state["importance"], want)


def test_formula():
    host, site = cw.Host(make("llama")[0]), "model.layers.1.mlp.up_proj"
    tenant = stir(host.add("t", "ist", rank=2, alpha=6))
    A, B = (tenant.pools[f"{site}.{k}"].detach() for k in "AB")
    want = host.weight(site) + 3 * sum(torch.outer(B[:, i], A[i]) for i in range(len(A)))
    torch.testing.assert_close(host.merged("t")[f"{site}.weight"], want, rtol=1e-4, atol=1e-5)


def test_a_weakened_update_is_one_of_a_smaller_scale():
    """The released look multiplies `module.scaling`, a number there; in today's PEFT it is a dict, and this stops."""
    model, batch = make("llama")
    host = cw.Host(model)
    tenant = stir(host.add("t", "ist", rank=2, alpha=6))
    host.add("quarter", "ist", rank=2, alpha=1.5)
    way = tenant.method.schedule(tenant.config, tenant.plan)
    pools = {n: p.detach() for n, p in tenant.pools.items()}
    weak = {**pools, **way.weakened(pools, range(len(way.layers)))}
    with torch.no_grad(), host.route("quarter"):
        for n, p in host["quarter"].pools.items():
            p.copy_(pools[n])
        want = model(**batch).logits
        for n, p in host["quarter"].pools.items():
            p.copy_(weak[n])
    with torch.no_grad(), host.route("t"):
        for n, p in tenant.pools.items():
            p.copy_(weak[n])
        torch.testing.assert_close(model(**batch).logits, want)
    scaling = {"default": 2.0}
    with pytest.raises(TypeError):
        scaling *= 0.25  # as the released code, on what PEFT has today


def test_a_layer_that_rests_does_not_age():
    """AdamW passes over what has no gradient: neither decay nor moments nor step. A gradient of zero ages all three."""
    pools = {n: torch.nn.Parameter(torch.ones(2)) for names in NAMES for n in names}
    way = Layers(IST(every=100), tuple(NAMES), 1)
    optimizer = torch.optim.AdamW([{"params": [p], "name": n} for n, p in pools.items()], lr=0.1, weight_decay=0.5)
    state, edit = way.begin(None, {}, 5)
    trained = dict.fromkeys(pools, 0)
    for step in range(1, 4):
        for n, p in pools.items():
            p.grad = None if n in edit.resting else torch.ones(2)
            trained[n] += n not in edit.resting
        optimizer.step()
        state, edit = way.after(Moment(step, 5, pools, {}, {}), state)
    assert {n: int(optimizer.state[p]["step"]) if p in optimizer.state else 0 for n, p in pools.items()} == trained
    never = next(n for n, many in trained.items() if not many)
    assert torch.equal(pools[never].detach(), torch.ones(2))
    pools[never].grad = torch.zeros(2)
    optimizer.step()
    assert (pools[never] < 1).all()
