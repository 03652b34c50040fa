"""What every exchange method keeps, whatever it is."""

import pytest
import torch

from commonweight.exchange import simulate
from commonweight.exchange.asks import drive_all
from commonweight.exchange.message import FRAME, payload, unpack
from commonweight.exchange.registry import METHODS
from commonweight.exchange.rounds import Gathering, down, facts, told, up
from tests.adapt import tiny
from tests.exchange import small

every = pytest.mark.parametrize("name", small.METHODS)
RECIPE = {"batch_size": 4, "lr": 1e-2, "clients": 3, "rounds": 3}


def a_round(p, state, round=0, keeps=None):
    """(what went down, told, what came up) of every client."""
    w, begin = small.work(p), small.start(p)
    data = [down(p.method, p.setting, state, round, c) for c in range(3)]
    heard = [
        told(p.method, p.setting, d, round, c, len(w.rows[c]), begin, (keeps or {}).get(c, {}))
        for c, d in enumerate(data)
    ]
    sent = drive_all([p.method.client(p.setting, t) for t in heard], lambda asks: w.answer(round, asks))
    return data, heard, [up(p.method, p.setting, t, s) for t, s in zip(heard, sent)], sent


@every
def test_bytes_are_those_of_the_formula(bert, name):
    """The numbers take what the formula says, or less where lengths vary; a message has a frame beside it."""
    p = small.prepared(bert, name, **RECIPE)
    state = p.method.begin(p.setting, small.start(p))
    data, _, answers, _ = a_round(p, state)
    for c in range(3):
        for message, table, formula in zip(
            (answers[c], data[c]), (p.method.up, p.method.down), p.method.nbytes(p.setting, 0, c)
        ):
            table = table(p.setting, 0, c)
            assert payload(table) == formula
            assert len(message) <= formula + FRAME
            if all(part.fixed for part in table.values()):
                assert formula < len(message)


@every
def test_what_is_sent_is_what_arrives(bert, name):
    p = small.prepared(bert, name, **RECIPE)
    state = p.method.begin(p.setting, small.start(p))
    _, _, answers, sent = a_round(p, state)
    for c in range(3):
        _, got = unpack(answers[c], p.method.up(p.setting, 0, c), facts(p.setting, 0))
        assert small.same(got, sent[c].tensors)


@every
def test_the_order_of_answers_does_not_count(bert, name):
    p = small.prepared(bert, name, **RECIPE)
    state = p.method.begin(p.setting, small.start(p))
    _, _, answers, _ = a_round(p, state)
    found = []
    for order in ((0, 1, 2), (2, 0, 1)):
        inbox = Gathering(p.method, p.setting, 0, {0, 1, 2})
        assert all(inbox.put(answers[c], c) for c in order)
        found.append(inbox.close(state))
    assert small.same(found[0].tensors, found[1].tensors)
    for n, pool in p.method.pools(p.setting, found[0]).items():
        assert pool.shape == p.setting.plan.pools[n].shape and pool.isfinite().all()


@every
def test_the_same_run_gives_the_same_bits(bert, name):
    rows = tiny.rows(30)
    runs = [
        simulate(small.prepared_host(bert), rows, method=name, options=small.SMALL[name], seed=3, **RECIPE)
        for _ in range(2)
    ]
    assert runs[0].curve == runs[1].curve
    assert small.same(runs[0].state.tensors, runs[1].state.tensors)
    assert not torch.equal(*(next(iter(small.values(r).values())) for r in (runs[0], small.fresh(bert, name))))


@pytest.mark.parametrize("name", [n for n, m in METHODS.available().items() if m.exact])
def test_the_mean_is_exact(bert, name):
    """The server's model is the mean of what the clients' models change, at every site."""
    p = small.prepared(bert, name, **RECIPE)
    state = p.method.begin(p.setting, small.start(p))
    inbox = Gathering(p.method, p.setting, 0, {0, 1, 2})
    _, _, answers, _ = a_round(p, state)
    for a in answers:
        inbox.put(a)
    after = p.method.pools(p.setting, inbox.close(state))
    each = [small.changes(p, r.tensors) for r in inbox.inbox.replies.values()]
    rows = [r.rows for r in inbox.inbox.replies.values()]
    for site, change in small.changes(p, after).items():
        mean = sum(n * e[site].double() for n, e in zip(rows, each)) / sum(rows)
        assert (change - mean).norm() <= 1e-6 * mean.norm().clamp(min=1e-6), site


def test_the_curve_has_the_loss_of_training_and_that_of_the_eval_rows(bert):
    rows, how = tiny.rows(30), {"method": "fed-sb", "options": {"rank": 2}, **RECIPE}
    plain = simulate(small.prepared_host(bert), rows, **how)
    run = simulate(small.prepared_host(bert), rows, eval_rows=tiny.rows(20, 5), **how)
    assert [r["train_loss"] for r in run.curve] == [r["train_loss"] for r in plain.curve]
    assert all(r["loss"] != r["train_loss"] and "accuracy" in r for r in run.curve)
    lost = simulate(small.prepared_host(bert), rows, eval_rows=tiny.rows(20, 5), vanish=1.0, **how)
    assert all(r["train_loss"] is None and r["replies"] == 0 for r in lost.curve)
    assert len({r["accuracy"] for r in lost.curve}) == 1
