"""MeZO: the slope, the step and the log, written out."""

import pytest

from commonweight.core.directions import direction
from commonweight.exchange import logs, simulate
from commonweight.exchange.asks import Loss, Told, drive
from commonweight.exchange.methods.mezo import seeds
from commonweight.exchange.registry import Reply
from tests.adapt import tiny
from tests.exchange import small


def quadratic(target):
    """Answers a client's asks about l(theta) = sum of (theta - target)^2 / 2."""

    def answer(ask):
        total = 0.0
        for n, v in ask.pools.items():
            for seed, scale in ask.along:
                v = v + scale * direction(seed, n, tuple(v.shape)) if n in ask.moved else v
            total += float((v.double() - target[n].double()).square().sum()) / 2
        return total

    return answer


def client_of(p, state, round, client, keep, target):
    told = Told(round, client, 5, p.method.tell(p.setting, state, round, client), small.start(p), keep)
    return drive(p.method.client(p.setting, told), quadratic(target))


def test_the_slope_and_the_step(bert):
    """Of a quadratic, central differences are exact: g = z . gradient; theta - rate / n * sum of g z."""
    p = small.prepared(bert, "mezo", {"rank": 2, "directions": 2, "rate": 0.01, "eps": 1e-2})
    start = small.start(p)
    target = small.moved(start, 1)
    state = p.method.begin(p.setting, start)
    sent = [client_of(p, state, 0, c, {}, target) for c in range(2)]
    z = [{n: direction(s, n, tuple(v.shape)) for n, v in start.items()} for s in seeds(p.setting, 0)]
    slopes = [sum(float(((start[n] - target[n]) * d[n]).sum()) for n in start) for d in z]
    assert sent[0].tensors["slopes"].tolist() == pytest.approx(slopes, rel=1e-3)
    sent[1].tensors["slopes"] += 1.0
    replies = [Reply(c, 1 + 2 * c, s.tensors) for c, s in enumerate(sent)]
    after = p.method.pools(p.setting, p.method.gather(p.setting, state, 0, replies))
    mean = [0.25 * a + 0.75 * b for a, b in zip(*(r.tensors["slopes"].tolist() for r in replies))]
    for n, v in after.items():
        want = start[n] - 0.01 / 2 * sum(g * d[n] for g, d in zip(mean, z))
        assert (v - want).abs().max() <= 1e-6, n


def walk(p, target, rounds, asleep=()):
    """(state, what clients keep). asleep: (round, client) that do not take part."""
    state, keeps = p.method.begin(p.setting, small.start(p)), {}
    for round in range(rounds):
        replies = []
        for c in range(3):
            if (round, c) not in asleep:
                sent = client_of(p, state, round, c, keeps.get(c, {}), target)
                keeps[c] = sent.keep
                replies.append(Reply(c, 4 + c, sent.tensors))
        state = p.method.gather(p.setting, state, round, replies)
    return state, keeps


@pytest.mark.parametrize("name", ["mezo", "one-byte"])
def test_the_log_is_the_model(bert, name):
    """Played from the start, it gives the server's bits; so does a client that missed rounds and is told the rest."""
    p = small.prepared(bert, name, {"adapter": "ia3", "rate": 1e-3})
    target = small.moved(small.start(p), 1)
    state, keeps = walk(p, target, 5, {(1, 2), (2, 2), (3, 1)})
    late = p.method.tell(p.setting, state, 5, 1)
    assert int(late["begins"][0]) == 4 and state.facts["has"] == {"0": 4, "1": 4, "2": 4}
    for keep in ({}, keeps[2]):
        facts = {"has": {} if not keep else state.facts["has"]}
        told = Told(5, 2, 5, p.method.tell(p.setting, state._replace(facts=facts), 5, 2), small.start(p), keep)
        seen = drive(p.method.client(p.setting, told), quadratic(target)).keep
        assert int(seen["steps"][0]) == 5
        assert small.same({n: seen[n] for n in p.setting.travels}, p.method.pools(p.setting, state))
    before = sum((small.start(p)[n] - target[n]).square().sum() for n in target)
    assert sum((v - target[n]).square().sum() for n, v in p.method.pools(p.setting, state).items()) < before


def test_a_client_that_forgot_says_so(bert):
    p = small.prepared(bert, "mezo", {"adapter": "ia3"})
    target = small.start(p)
    state, _ = walk(p, target, 2)
    with pytest.raises(ValueError, match="client 1: it was told the steps from 1 on and has the first 0"):
        client_of(p, state, 2, 1, {}, target)


def test_a_client_that_has_more_than_the_server_knows(bert):
    """Its answer was lost after it had walked."""
    p = small.prepared(bert, "mezo", {"adapter": "ia3"})
    target = small.moved(small.start(p), 1)
    state, keeps = walk(p, target, 3)
    behind = state._replace(facts={"has": {**state.facts["has"], "0": 1}})
    one, other = (client_of(p, s, 3, 0, keeps[0], target) for s in (state, behind))
    assert small.same(one.keep, other.keep) and small.same(one.tensors, other.tensors)


def test_bytes(bert):
    """4 a direction up; down 4 and 4 for each direction of each step that is new to the client."""
    p = small.prepared(bert, "mezo", {"rank": 2, "directions": 3})
    assert p.method.nbytes(p.setting, 0, 0) == (12, 4)
    state, _ = walk(p, small.start(p), 4)
    told = p.method.tell(p.setting, state, 4, 0)
    assert sum(v.numel() * v.itemsize for v in told.values()) == 4 + 12 and p.method.nbytes(p.setting, 4, 0)[1] == 52
    assert p.setting.count > 1000 and logs.BEGINS.nbytes == 4


def test_pools_that_stay_do_not_walk(bert):
    p = small.prepared(bert, "mezo", {"rank": 2}, private="*.B")
    target = small.moved(small.start(p), 1)
    state, _ = walk(p, target, 2)
    assert p.method.pools(p.setting, state).keys() == set(p.setting.travels)
    asked = next(p.method.client(p.setting, Told(0, 0, 5, p.method.tell(p.setting, state, 0, 9), small.start(p), {})))
    assert (
        isinstance(asked, Loss)
        and set(asked.moved or ()) == set(p.setting.travels)
        and asked.pools.keys() == small.start(p).keys()
    )


def test_it_learns(bert):
    rows = tiny.rows(12)
    how = {"options": {"adapter": "ia3", "directions": 2, "rate": 0.05}, "clients": 2, "rounds": 12, "batch_size": 6}
    losses = [r["train_loss"] for r in simulate(small.prepared_host(bert), rows, method="mezo", **how).curve]
    assert sum(losses[-3:]) < sum(losses[:3])
