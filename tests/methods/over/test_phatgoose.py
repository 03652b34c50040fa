"""PHATGOOSE against its formulas: a gate over one tenant, and tokens among several."""

import math

import pytest
import torch

from commonweight import CommonweightError

from .below import SITE, stand


def test_a_gate():
    _, t, x, _, added, pairs = stand("phatgoose", "a")
    v, (A, B) = t.pools[f"{SITE}.v"].detach()[0], pairs[0]
    torch.testing.assert_close(added, torch.sigmoid(x @ v)[..., None] * (x @ A.T @ B.T), rtol=1e-4, atol=1e-5)
    assert t.count() == 2 * (32 + 64)


def standard(t):
    return (t - t.mean(-1, keepdim=True)) / (t.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()


def test_tokens_among_several():
    host, t, x, _, added, pairs = stand("phatgoose", "abc", active=2)
    gates = [standard(host[f"{n}-gate"].pools[f"{SITE}.v"].detach()[0]) for n in "abc"]
    for row in range(x.shape[0]):
        for at in range(x.shape[1]):
            like = [float(v @ standard(x[row, at])) / math.sqrt(64) for v in gates]
            best = sorted(range(3), key=lambda i: -like[i])[:2]
            total = sum(math.exp(like[i]) for i in best)
            want = sum(math.exp(like[i]) / total * (pairs[i][1] @ (pairs[i][0] @ x[row, at])) for i in best)
            torch.testing.assert_close(added[row, at], want, rtol=1e-3, atol=1e-5)
    assert t.count() == 0


def test_a_gate_has_no_gate():
    host, *_ = stand("phatgoose", "a")
    with pytest.raises(CommonweightError, match="over one tenant it must have none"):
        host.add("u", "phatgoose", over=["t"])
