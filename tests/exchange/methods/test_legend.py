"""LEGEND: ranks that grow, clients of other depths, means over those that have a layer."""

import pytest
import torch

from commonweight.exchange import simulate
from commonweight.exchange.methods.legend import Legend, deepest, held, layer, ranks
from commonweight.exchange.registry import Reply
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


def test_the_deepest_that_meets_a_deadline():
    sizes = [100, 80, 60, 40]
    assert deepest(4, 1.0, sizes, 100.0, 10.0) == 4
    assert deepest(4, 1.0, sizes, 100.0, 3.9) == 2  # 2 s and 1.8 s
    assert deepest(4, 1.0, sizes, 100.0, 0.1) == 1


@pytest.mark.parametrize(
    ("options", "what"),
    [({"least": 9, "rank": 8}, "least=9 is more than rank=8"), ({"depths": (0.0,)}, "wanted shares above 0")],
)
def test_what_cannot_be(options, what):
    with pytest.raises(ValueError, match=what):
        Legend(**options)
