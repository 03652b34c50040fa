from __future__ import annotations

import pytest
import torch

from commonweight.adapt import open_host
from commonweight.lifelong import stages
from commonweight.lifelong.features import queries
from tests.lifelong import small


@pytest.mark.parametrize("threshold", [-1.0, 1.0])
def test_a_task_below_the_threshold_keeps_no_prefix(model, tmp_path, monkeypatch, threshold):
    seen = []
    old = stages.publish
    monkeypatch.setattr(
        stages, "publish", lambda host, store, tenants: seen.append(tenants) or old(host, store, tenants)
    )
    host = open_host(model, "classify", dtype="float32")
    asked = []
    from commonweight.lifelong.methods import mocl_p

    monkeypatch.setattr(mocl_p, "queries", lambda *a: asked.append(a) or queries(*a))
    options = {**small.options("mocl-p"), "threshold": threshold}
    made = small.stream(model, tmp_path / "shop", "mocl-p", host=host, options=options)
    first, second = seen[1]["first"].pools, seen[1]["second"].pools
    assert all(torch.equal(p, seen[0]["first"].pools[n]) for n, p in first.items())
    body = {n for n in first if not n.startswith("head")}
    assert all(torch.equal(first[n], second[n]) for n in body)
    more = {n for n in second if n not in first}
    assert bool(more) == (threshold < 0)
    _, facts, _ = stages.state.read(made.folder, 1)
    assert facts["stays"] == (["first", "second"] if threshold < 0 else ["first"])
    if threshold < 0:
        v = second["pool.K1"][0]
        each = [float(q @ v / (q.norm() * v.norm())) for q in queries(*asked[1])]
        assert facts["weights"]["second"] == pytest.approx(sum(each) / len(each), rel=1e-5)
