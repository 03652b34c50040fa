"""FISH mask: which entries travel, and what their mean is."""

import torch

from commonweight.exchange import simulate
from commonweight.exchange.registry import Reply
from tests.adapt import tiny
from tests.exchange import small


def test_the_mean_at_the_kept_places(bert):
    """w + scatter(sum_n w_n v_n), and nothing elsewhere."""
    p = small.prepared(bert, "fish-mask", {"ratio": 0.05, "start": "random"})
    begin = small.start(p)
    replies = [Reply(c, 2 + c, small.moved(begin, c)) for c in range(3)]
    after = p.method.pools(p.setting, p.method.gather(p.setting, p.method.begin(p.setting, begin), 0, replies))
    site = next(u.site for u in p.setting.plan.uses if "dw" in u.reads)
    places = p.tenant.pools[f"{site}.places"].long()
    dense = sum(r.rows / 9 * torch.zeros(p.host.weight(site).numel()).index_add(0, places, r.tensors[f"{site}.v"])
                for r in replies)  # fmt: skip
    change = small.changes(p, after)[site].flatten()
    torch.testing.assert_close(change.float(), dense, atol=1e-6, rtol=0)
    assert (change != 0).sum() == len(places) == round(0.05 * len(change))


def test_the_places_are_of_the_first_client_s_rows_and_sent_once(bert):
    """The largest sum of squared gradients of all sites together; the head is trained whole and not counted."""
    rows, how = tiny.rows(24), {"clients": 3, "rounds": 2, "batch_size": 4, "lr": 1e-2, "seed": 1}
    run = simulate(small.prepared_host(bert), rows, method="fish-mask", options={"ratio": 0.02}, shown=6, **how)
    plain = simulate(
        small.prepared_host(bert), rows, method="fish-mask", options={"ratio": 0.02, "start": "random"}, **how
    )
    kept = dict(run.tenant.config.kept)
    total = sum(run.host.weight(s.name).numel() for s in run.host.sites_for(run.tenant.method))
    assert sum(kept.values()) == int(0.02 * total) and run.tenant.config.start == "given"
    more = 8 * sum(kept.values())  # a place and a value each
    assert more < run.up - plain.up <= more + 1500 and run.seats[0].setup is False
    assert all(run.seats[c].setup for c in (1, 2))
    again = run.client(2)
    assert all(torch.equal(again.pools[n], p) for n, p in run.tenant.pools.items())
