from __future__ import annotations

from typing import Any

import torch

from commonweight import Commons
from commonweight.adapt import open_host
from commonweight.lifelong import state
from commonweight.lifelong.projected import Projected, grown, shrunk, sketched
from tests.lifelong import small


def written(grads, q, inside, rank, keep, gap, lr, w):
    """The definition once more: P, the sketch and the moments of one matrix over some steps."""
    m: Any = None
    v: Any = None
    p: Any = None
    sketch: Any = None
    for n, g in enumerate(grads):
        g = g - q @ q.T @ g
        if n % gap == 0:
            u, s, _ = torch.linalg.svd(g)
            p = u[:, :inside]
            new = u[:, :rank] @ torch.diag((s[:rank] ** 2 - s[rank] ** 2).clamp(min=0).sqrt())
            if sketch is not None:
                uu, ss, _ = torch.linalg.svd(torch.cat([keep * sketch, new], 1))
                new = uu[:, :rank] @ torch.diag((ss[:rank] ** 2 - ss[rank] ** 2).clamp(min=0).sqrt())
            sketch = new
        low = p.T @ g
        m = 0.1 * low if m is None else 0.9 * m + 0.1 * low
        v = 0.001 * low**2 if v is None else 0.999 * v + 0.001 * low**2
        t = n + 1
        w = w - lr * p @ ((m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8))
    return w, sketch


def test_steps_are_those_of_the_definition():
    g = torch.Generator().manual_seed(0)
    q = torch.linalg.qr(torch.randn(7, 2, generator=g))[0]
    grads = [torch.randn(7, 9, generator=g) for _ in range(4)]
    w = torch.nn.Parameter(torch.zeros(7, 9))
    made = Projected([{"params": [w], "lr": 0.01}], 0.0, {id(w): q}, inside=3, sketch=4, keep=0.5, gap=2)
    for one in grads:
        w.grad = one.clone()
        made.step()
    want, sketch = written(grads, q, 3, 4, 0.5, 2, 0.01, torch.zeros(7, 9))
    assert torch.allclose(w.detach(), want, atol=1e-5)
    assert (q.T @ w.detach()).abs().max() < 1e-5  # earlier tasks' directions stay
    have = made.state[w]["sketch"]
    assert torch.allclose(have @ have.T, sketch @ sketch.T, atol=1e-3)


def test_a_sketch_is_within_the_bound_of_frequent_directions():
    """0 <= x^T (A A^T - S S^T) x <= ||A||_F^2 / (r + 1) for every unit x; Liberty, arXiv 1206.0594."""
    g = torch.Generator().manual_seed(0)
    every = [torch.randn(12, 5, generator=g) for _ in range(6)]
    sketch: Any = None
    for a in every:
        u, s, _ = torch.linalg.svd(a, full_matrices=False)
        sketch = sketched(sketch, u, s, 6, 1.0)
    whole = torch.cat(every, 1)
    left = torch.linalg.eigvalsh(whole @ whole.T - sketch @ sketch.T)
    assert left.min() > -1e-3 and left.max() <= whole.square().sum() / 7


def test_the_direction_that_crosses_the_threshold_is_left_out():
    u, s = torch.eye(4), torch.tensor([2.0, 1.0, 0.5, 0.1])
    assert grown(None, shrunk(u, s, 4), 0.9).shape == (4, 1)  # energies 0.76, 0.95
    assert grown(torch.eye(4)[:, :1], torch.zeros(4, 2), 0.9).shape == (4, 1)


def test_a_later_task_moves_outside_what_was_used(model, tmp_path):
    host = open_host(model, "classify", dtype="float32")
    one = small.stream(model, tmp_path / "shop", "coso", n=1, host=host)
    bases, _, _ = state.read(one.folder, 0)
    made = small.stream(model, tmp_path / "shop", "coso", host=host, resume=True)
    shop = Commons(tmp_path / "shop", make=False)
    before = host.load_from(shop, one.tenants["first"], as_="before")
    after = host.load_from(shop, made.tenants["first"], as_="after")
    assert bases
    for n, q in bases.items():
        moved = (after.pools[n] - before.pools[n]).detach()
        assert moved.any() and (q.T @ moved).abs().max() < 1e-5
    assert all(not p.any() for n, p in after.pools.items() if n.endswith(".db"))
