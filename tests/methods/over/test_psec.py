"""PSEC against its formula: one network, on what the layer's first site is given."""

import torch

from .below import stand


def test_formula():
    seen = {}
    _, t, x, _, added, pairs = stand("psec", hidden=5, seen=seen)
    p = {k.rpartition(".")[2]: v.detach() for k, v in t.pools.items() if k.startswith("state32")}
    z = seen["z"]
    a = torch.relu(z @ p["W1"].T + p["b1"]) @ p["W2"].T + p["b2"]
    want = sum(a[..., i, None] * (x @ A.T @ B.T) for i, (A, B) in enumerate(pairs))
    torch.testing.assert_close(added, want, rtol=1e-4, atol=1e-5)
    assert a.min() < 0 or a.max() > 1
    assert t.count() == 5 * (32 + 1) + 3 * (5 + 1)


def test_it_begins_with_the_mean():
    _, _, x, _, added, pairs = stand("psec", stirred=False)
    torch.testing.assert_close(added, sum(x @ A.T @ B.T for A, B in pairs) / 3, rtol=1e-4, atol=1e-5)
