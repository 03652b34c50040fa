"""LEGEND: ranks that grow, clients of other depths, means over those that have a layer."""

import math
import statistics

import pytest
import torch

import commonweight as cw
from commonweight.exchange import simulate
from commonweight.exchange.methods.legend import Legend, held, layer, ranks, seconds
from commonweight.exchange.methods.legend import depth as depth_of
from commonweight.exchange.registry import Reply, Setting
from tests.adapt import tiny
from tests.exchange import small


def test_ranks_grow_towards_the_output(bert):
    p = small.prepared(bert, "legend")
    sites = p.host.sites_for(p.tenant.method)
    found = ranks(Legend(rank=6, least=2), sites)
    of = dict(found["ranks"])
    assert {n: r for n, r in of.items() if layer(n) == 0}.values() and set(of.values()) == {2, 6}
    assert all(r == (2 if layer(n) == 0 else 6) for n, r in of.items())
    assert all(a == 2 * of[n] for n, a in found["alphas"])


def test_a_client_sends_the_layers_that_it_has(bert):
    p = small.prepared(bert, "legend", clients=12)
    mine = [held(p.setting, c) for c in range(12)]
    assert {frozenset(map(layer, m)) for m in mine} == {frozenset({None, 1}), frozenset({None, 0, 1})}
    for c, names in enumerate(mine):
        up, down = p.method.nbytes(p.setting, 0, c)
        assert up == down == 4 * sum(p.setting.pools[n].numel for n in names)


def test_a_layer_s_mean_is_over_those_that_have_it(bert):
    p = small.prepared(bert, "legend", clients=12)
    begin = small.start(p)
    each = [Reply(c, c + 1, small.moved({n: begin[n] for n in held(p.setting, c)}, c)) for c in range(5)]
    after = p.method.gather(p.setting, p.method.begin(p.setting, begin), 0, each)
    for n, value in after.tensors.items():
        some = [r for r in each if n in r.tensors]
        rows = sum(r.rows for r in some)
        wanted = sum(r.rows / rows * r.tensors[n].double() for r in some) if some else begin[n].double()
        assert (value.double() - wanted).abs().max() <= 1e-6


def test_what_a_client_lacks_is_the_base(bert):
    """It trains the last layer beside untouched first ones, also with a weight decay."""
    p = small.prepared(bert, "legend", clients=12, weight_decay=0.1, lr=1e-2)
    shallow = next(c for c in range(12) if not any(layer(n) == 0 for n in held(p.setting, c)))
    begin, w = small.start(p), small.work(p, (6,) * 12)
    from commonweight.exchange.asks import Told

    gen = p.method.client(p.setting, Told(0, shallow, 6, {n: begin[n] for n in held(p.setting, shallow)}, begin, {}))
    (done,) = w.answer(0, [(shallow, next(gen))])
    for n in p.setting.travels:
        assert torch.equal(done.pools[n], begin[n]) == (layer(n) == 0), n


def test_a_run(bert):
    run = simulate(
        small.prepared_host(bert), tiny.rows(60), method="legend", options=small.SMALL["legend"], clients=6, rounds=2,
        eval_rows=tiny.rows(20, 5),
    )  # fmt: skip
    assert len({s.up for s in run.seats.values()}) == 2


CAN = {
    "alike": {"seconds": (1.0,)},
    "speeds": {"seconds": (1.0, 2.0, 0.25, 9.0)},
    "links": {"rates": (1e3, 1e4, 200.0)},
    "both": {"seconds": (0.5, 2.0, 4.0), "rates": (4e3, 1e3)},
    "a deadline": {"seconds": (0.5, 2.0, 4.0), "rates": (4e3, 1e3), "deadline": 6.0},
    "too slow": {"seconds": (50.0,), "deadline": 1.0},
    "memory": {"memory": (1, 2, 9)},
    "all": {"seconds": (1.0, 2.0, 0.25, 9.0), "rates": (4e3, 1e3, 500.0), "memory": (3,)},
}


@pytest.mark.parametrize("can", CAN)
@pytest.mark.parametrize("clients", [7, 8])
def test_greedy_depths_are_those_of_the_formula(can, clients):
    """Four layers of ranks 2, 4, 6, 8 and a head, written out by hand: max L with L t + bytes(L) / rate <= deadline."""
    given = CAN[can]
    pools = {f"layers.{k}.A": cw.Pool((2 + 2 * k, 10), cw.core.ZEROS) for k in range(4)}
    pools["head.weight"] = cw.Pool((3, 10), cw.core.ZEROS)
    setting = Setting("legend", Legend(**given), cw.Plan(pools, ()), tuple(pools), clients=clients)

    def time(c, depth):
        second = given["seconds"][c % len(given["seconds"])] if "seconds" in given else 0
        rate = given["rates"][c % len(given["rates"])] if "rates" in given else math.inf
        numbers = 30 + 80 * (depth > 0) + 60 * (depth > 1) + 40 * (depth > 2) + 20 * (depth > 3)
        return depth * second + 4 * numbers / rate + 4 * numbers / rate  # up and down

    deadline = given.get("deadline", statistics.median_low([time(c, 4) for c in range(clients)]))
    for c in range(clients):
        most = given["memory"][c % len(given["memory"])] if "memory" in given else 4
        wanted = max([1] + [depth for depth in range(1, 5) if depth <= most and time(c, depth) <= deadline])
        assert depth_of(setting, c) == wanted
        assert [n for n in held(setting, c)] == [f"layers.{k}.A" for k in range(4 - wanted, 4)] + ["head.weight"]
        said = seconds(setting, c)
        assert said is None if can == "memory" else said == pytest.approx(time(c, wanted))


def test_what_clients_can_holds_in_a_run(bert):
    """Each sends the layers it has time for; nobody is late with the greedy depths, and the slow are without them."""
    can = {"rank": 4, "least": 2, "seconds": (0.7, 1.4, 0.7)}  # the median's time is no float32
    how = {"clients": 6, "rounds": 2, "deadline": 1.0}
    run = simulate(small.prepared_host(bert), tiny.rows(60), method="legend", options=can, **how)
    fast, slow = run.seats[0], run.seats[1]
    assert [run.seats[c].up for c in range(6)] == [fast.up, slow.up, fast.up] * 2 and slow.up < fast.up
    assert all(r["refused"] == {} and r["replies"] == 6 for r in run.curve)
    late = simulate(small.prepared_host(bert), tiny.rows(60), method="legend", options=can | {"deadline": 99.0}, **how)
    assert [r["refused"] for r in late.curve] == [{"late": 2}] * 2


def test_more_that_are_described_than_there_are(bert):
    with pytest.raises(ValueError, match="seconds has 4 numbers for 3 clients"):
        simulate(
            small.prepared_host(bert), tiny.rows(9), method="legend", options={"seconds": (1, 2, 3, 4)}, clients=3
        )  # fmt: skip


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"least": 9, "rank": 8}, "least=9 is more than rank=8"),
        ({"depths": (0.0,)}, "wanted shares above 0"),
        ({"rates": (100.0, 0.0)}, "rates has 0; wanted numbers above 0"),
        ({"deadline": 3.0, "memory": (2,)}, "deadline without seconds or rates"),
    ],
)
def test_what_cannot_be(options, what):
    with pytest.raises(ValueError, match=what):
        Legend(**options)
