"""Clients in one mixed batch are what they are one after the other."""

import pytest
import torch
from torch.nn import functional as F

from commonweight.adapt.tasks.base import length
from commonweight.exchange import work as working
from commonweight.exchange.asks import Loss, Train
from commonweight.exchange.work import Stream
from tests.adapt import tiny
from tests.exchange import small

RECIPE = {"lr": 1e-2, "batch_size": 4, "epochs": 2.0}


def close(a, b, at=1e-5):
    for one, other in zip(a, b, strict=True):
        assert one.steps == other.steps and one.loss == pytest.approx(other.loss, abs=at)
        for n in one.pools:
            assert (one.pools[n] - other.pools[n]).abs().max() <= at, n


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_together_is_one_after_the_other(bert, optimizer):
    """Clients of 5, 9 and 14 rows: other batches, other numbers of steps, some done before others."""
    p = small.prepared(bert, "fedavg", {"rank": 2}, optimizer=optimizer, **RECIPE)
    asks = [(c, Train(small.moved(small.start(p), c))) for c in range(3)]
    mixed = small.work(p).answer(0, asks)
    alone = small.work(p, mixed=1).answer(0, asks)
    assert [t.steps for t in mixed] == [6, 4, 8]
    close(mixed, alone)
    assert all(not torch.equal(t.pools[n], a.pools[n]) for t, (_, a) in zip(mixed, asks) for n in t.pools)


def test_a_mixed_batch_has_so_many_tokens(bert, monkeypatch):
    """Of the rows of its longest client each; clients of like rows are in one, and a client is never cut."""
    p = small.prepared(bert, "fedavg", {"rank": 2}, **RECIPE)
    work = small.work(p, (4, 4, 4, 4))
    rows = [work.rows[c][0] for c in range(4)]
    long = [{**rows[0], "input_ids": [5] * n} for n in (10, 30, 11, 31)]
    work.rows = [[e] * 4 for e in long]
    asks = [(c, Train(small.start(p), steps=1)) for c in range(4)]
    for most, wanted in (
        (1000, [[3, 1, 2, 0]]),
        (250, [[3, 1], [2, 0]]),
        (100, [[3], [1], [2, 0]]),
        (1, [[3], [1], [2], [0]]),
    ):
        monkeypatch.setattr(working, "TOKENS", most)
        assert work._groups([0, 1, 2, 3], asks) == wanted


def test_it_is_plain_training(bert):
    """The same steps written out: the tenant's own pools, torch's AdamW, one client."""
    p = small.prepared(bert, "fedavg", {"rank": 2}, clip=0.5, **RECIPE)
    work, begin = small.work(p), small.start(p)
    got = work.answer(2, [(1, Train(begin, steps=3))])[0]
    groups = [
        {"params": g["params"], "lr": g["lr"]} for g in p.tenant.param_groups(p.local.rate(1e-3, 2, p.setting.rounds))
    ]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
    p.host.model.eval()
    stream = Stream(0, 1, 2, [length(e) for e in work.rows[1]], 4)
    for step in range(3):
        batch = p.task.collate([work.rows[1][i] for i in stream.rows(step)])
        labels = batch.pop("labels")
        with p.host.route("global"):
            F.cross_entropy(p.host.model(**batch).logits, labels).backward()
        torch.nn.utils.clip_grad_norm_(p.tenant.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad()
    for n, value in p.tenant.named_parameters():
        assert (got.pools[n] - value.detach()).abs().max() <= 1e-5, n


def test_an_optimiser_that_is_kept_goes_on(bert):
    """Three steps and two more are five, for clients of one length in one batch."""
    p = small.prepared(bert, "fedavg", {"rank": 2}, batch_size=4, lr=1e-2)
    work, begin = small.work(p, (4, 4)), small.start(p)
    first = work.answer(0, [(c, Train(begin, steps=2, moments={})) for c in range(2)])
    assert work.answer(0, [(0, Train(begin, steps=2))])[0].moments == {}
    more = work.answer(0, [(c, Train(t.pools, 2, t.moments)) for c, t in enumerate(first)])
    whole = work.answer(0, [(c, Train(begin, steps=4)) for c in range(2)])
    # the second half shows the first half's rows again: all rows are in every step, in another order
    for a, b in zip(more, whole):
        assert float(next(v for k, v in a.moments.items() if k.startswith("step/"))) == 4
        assert all((a.pools[n] - b.pools[n]).abs().max() <= 1e-5 for n in a.pools)


def test_losses_are_read_in_one_batch(bert):
    """Other pools, other directions, other clients: each as by itself, and without a trace."""
    p = small.prepared(bert, "fedavg", {"rank": 2}, batch_size=4)
    work, begin = small.work(p), small.start(p)
    asks = [(c, Loss(begin, batch=1, along=((7, s), (8, -s)))) for c in range(3) for s in (0.0, 0.1)]
    got = work.answer(0, asks)
    alone = [small.work(p, mixed=1).answer(0, [a])[0] for a in asks]
    assert got == pytest.approx(alone, abs=1e-5)
    assert got[0] != pytest.approx(got[1], abs=1e-6)


def test_language_models_mix(llama):
    """A client's loss is the mean over its own tokens."""
    from commonweight.adapt import open_host
    from commonweight.exchange.local import Local, Rounds
    from commonweight.exchange.setting import by_client, make_task, ready
    from commonweight.exchange.work import Work

    rows = [{"text": r["text"]} for r in tiny.rows(20)]
    host, local = open_host(llama, "lm", dtype="float32"), Local(batch_size=3, lr=1e-2)
    task = make_task(host, "lm", rows, None, None, local, {}, "rows")
    p = ready(host, task, "fedavg", {"rank": 2}, Rounds(clients=2), local, clients=2)
    each = by_client(task, rows, [list(range(7)), list(range(7, 20))])
    asks = [(c, Train(small.moved(small.start(p), c))) for c in range(2)]  # B of zero gives A gradients of rounding
    got = [Work(host, p.tenant, task, each, local, 1, 0, m).answer(0, asks) for m in (256, 1)]
    close(*got)


@pytest.mark.parametrize("adapter", small.adapters())
def test_every_adapter_mixes(bert, adapter):
    """Law: whatever a client trains, a batch of two is the two alone."""
    p = small.prepared(bert, "fedavg", small.options(adapter), batch_size=3, lr=1e-3, optimizer="sgd")
    asks = [(c, Train(small.moved(small.start(p), c, 0.01), steps=2)) for c in range(2)]
    close(small.work(p).answer(0, asks), small.work(p, mixed=1).answer(0, asks), 2e-5)


def test_rows_of_a_round():
    """Every row once an epoch, in batches of like length, drawn anew each time; all clients' long ones together."""
    lengths = [[(i * 7 + c) % 29 + 3 for i in range(20 - c)] for c in range(3)]
    streams = [Stream(5, c, 1, n, 4) for c, n in enumerate(lengths)]
    for s, n in zip(streams, lengths):
        each = -(-len(n) // 4)
        for epoch in range(2):
            found = [s.rows(epoch * each + k) for k in range(each)]
            assert sorted(i for b in found for i in b) == list(range(len(n)))
    assert streams[0].rows(0) == Stream(5, 0, 1, lengths[0], 4).rows(0)
    assert [streams[0].rows(k) for k in range(5)] != [streams[0].rows(k) for k in range(5, 10)]
    longest = [[max(n[i] for i in s.rows(k)) for k in range(5)] for s, n in zip(streams, lengths)]
    padded = sum(max(step) for step in zip(*longest)) * 3
    assert padded <= 1.25 * sum(map(sum, longest))
