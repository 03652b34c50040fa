from __future__ import annotations

import pytest
import torch

from commonweight.adapt import open_host
from commonweight.core import Rng
from commonweight.lifelong import stages
from commonweight.lifelong.methods.coda_prompt import CODAPrompt, apart, skewed
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


def gram_schmidt(old, drawn):
    """models/zoo.py @605ac87, column by column."""
    u = [*old]
    for v in drawn:
        u.append(v - sum((v * w).sum() / (w * w).sum() * w for w in u))
    return torch.stack([w / w.norm() for w in u[len(old) :]])


def test_new_components_begin_as_in_the_code():
    g = torch.Generator().manual_seed(0)
    shapes = {"a.P": (3, 2, 2, 8), "a.K": (3, 8), "a.A": (3, 8)}
    pools = {f"{n}{i}": torch.randn(s, generator=g) for n, s in shapes.items() for i in range(2)}
    found = apart(pools, 2, 7)
    assert found.keys() == {f"{n}2" for n in shapes}
    for n, s in shapes.items():
        old = torch.cat([pools[f"{n}0"], pools[f"{n}1"]]).flatten(1)
        drawn = Rng(7, f"coda-prompt/{n}2").normal((3, old.shape[1]))
        torch.testing.assert_close(found[f"{n}2"].flatten(1), gram_schmidt(old, drawn), rtol=1e-4, atol=1e-5)
        assert found[f"{n}2"].shape == s


def test_the_numbers_of_the_code():
    c = CODAPrompt()
    assert (c.components, 2 * c.tokens, c.weight, c.attentions) == (100 // 10, 8, 0.1, 5)


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
