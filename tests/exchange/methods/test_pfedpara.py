"""pFedPara: half of the numbers travel."""

import torch

from commonweight.exchange import simulate
from tests.adapt import tiny
from tests.exchange import small


def test_w1_travels_and_w2_stays(bert):
    p = small.prepared(bert, "pfedpara", {"rank": 3})
    full = small.prepared(bert, "fedpara", {"rank": 3})
    head = 3 * 33
    assert 2 * (p.setting.count - head) == full.setting.count - head
    assert {n[-2:] for n in p.setting.private} == {"A2", "B2"}


def test_clients_differ_in_what_they_keep(bert):
    run = simulate(
        small.prepared_host(bert), tiny.rows(40), method="pfedpara", options={"rank": 2}, clients=3, rounds=2,
        split="labels:1", lr=1e-2, holdout=0.2,
    )  # fmt: skip
    mine = [run.kept.of(c) for c in range(3)]
    n = run.setting.private[0]
    assert not torch.equal(mine[0][n], mine[1][n]) and run.tenant.pools[n].isfinite().all()
