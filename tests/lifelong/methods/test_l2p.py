from __future__ import annotations

import torch

from commonweight.adapt import open_host
from commonweight.lifelong import stages
from commonweight.lifelong.methods.l2p import L2P
from tests.lifelong import small


def test_the_numbers_of_the_code():
    """configs/cifar100_l2p.py @8cfb210; the weight of configs/five_datasets_l2p.py."""
    c = L2P()
    assert (c.prompts, c.tokens, c.top, c.pull) == (10, 5, 5, 0.5)


def test_one_pool_goes_on_and_the_keys_are_pulled(model, tmp_path, monkeypatch):
    seen = []
    old = stages.publish
    monkeypatch.setattr(
        stages, "publish", lambda host, store, tenants: seen.append(tenants) or old(host, store, tenants)
    )
    host = open_host(model, "classify", dtype="float32")
    for name, pull in (("a", 0.5), ("b", 0.0)):
        options = {**small.options("l2p"), "pull": pull}
        small.stream(model, tmp_path / name, "l2p", host=host, options=options)
    with_pull, _, plain, later = seen[0]["first"], seen[1], seen[2]["first"], seen[3]
    assert torch.equal(later["first"].pools["pool.K0"], later["second"].pools["pool.K0"])
    site = with_pull.sites[0].name
    assert torch.equal(later["first"].pools[f"{site}.P0"], later["second"].pools[f"{site}.P0"])
    assert not torch.equal(later["first"].pools[f"{site}.P0"], plain.pools[f"{site}.P0"])
    start = host.add("t", "prompt-pool", seed=plain.seed, **small.options("l2p")).pools["pool.K0"]
    assert not torch.equal(with_pull.pools["pool.K0"], start)
    assert torch.equal(plain.pools["pool.K0"], start)  # who is taken has no gradient of its own
