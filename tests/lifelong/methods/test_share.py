from __future__ import annotations

import torch

from commonweight.adapt import open_host
from commonweight.lifelong import stages
from tests.lifelong import small


def test_the_first_tasks_bases_stay_and_lie_in_the_store_once(model, tmp_path, monkeypatch):
    seen, old = [], stages.publish
    monkeypatch.setattr(stages, "publish", lambda host, shop, each: seen.append(each) or old(host, shop, each))
    made = small.stream(model, tmp_path / "shop", "share", host=open_host(model, "classify", dtype="float32"))
    first, second = seen[1]["first"].pools, seen[1]["second"].pools
    assert all(torch.equal(p, seen[0]["first"].pools[n]) for n, p in first.items())
    bases = [n for n in second if ".basis_" in n]
    own = [n for n in second if ".eps_B" in n]
    assert bases and all(torch.equal(first[n], second[n]) for n in bases)
    assert any(not torch.equal(first[n], second[n]) for n in own)
    spent = [s["bytes"]["pools"] for s in made.record["stages"]]
    theirs = sum(p.numel() for n, p in second.items() if ".basis_" not in n) * 4
    assert spent[1] - spent[0] == theirs
