from __future__ import annotations

import pytest
import torch

from commonweight.adapt import open_host
from commonweight.lifelong import stages
from commonweight.lifelong.methods.coda_prompt import skewed
from tests.lifelong import small


def test_the_penalty_is_the_mean_squared_distance_of_gram_matrices_from_one():
    g = torch.Generator().manual_seed(0)
    pools = {
        f"{site}.{kind}{part}": torch.randn(2, *shape, generator=g)
        for site in ("a1.prefix", "b.prefix") for part in range(2) for kind, shape in (("P", (2, 3, 4)), ("K", (4,)))
    }  # fmt: skip
    want = 0.0
    for kind in ("a1.prefix.P", "a1.prefix.K", "b.prefix.P", "b.prefix.K"):
        rows = [r.flatten() for part in range(2) for r in pools[f"{kind}{part}"]]
        want += sum((float(a @ b) - (i == j)) ** 2 for i, a in enumerate(rows) for j, b in enumerate(rows)) / 16
    assert float(skewed(pools, 0.5)) == pytest.approx(0.5 * want, rel=1e-5)


def test_a_task_adds_components_and_leaves_the_earlier_ones(model, tmp_path, monkeypatch):
    """What is published after each stage: all tasks have all components, and the first part keeps its bits."""
    seen = []
    old = stages.publish
    monkeypatch.setattr(
        stages, "publish", lambda host, store, tenants: seen.append(tenants) or old(host, store, tenants)
    )
    small.stream(model, tmp_path / "shop", "coda-prompt", host=open_host(model, "classify", dtype="float32"))
    first, second = seen[0]["first"], seen[1]
    new = {n for n in second["second"].pools if n.endswith("1")}
    for name, pool in first.pools.items():
        assert torch.equal(pool, second["first"].pools[name]), name
        if not name.startswith("head"):
            assert torch.equal(pool, second["second"].pools[name]), name
    assert new and all(torch.equal(second["first"].pools[n], second["second"].pools[n]) for n in new)
