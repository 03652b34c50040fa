"""Arrow against its formula, token by token."""

import math

import torch

from .below import SITE, stand


def test_formula():
    _, t, x, _, added, pairs = stand("arrow", active=2, temperature=0.5)
    rows = [torch.linalg.svd(B @ A).Vh[0] for A, B in pairs]
    for row in range(x.shape[0]):
        for at in range(x.shape[1]):
            token = x[row, at]
            like = [abs(float(v @ token)) / 0.5 for v in rows]
            best = sorted(range(3), key=lambda i: -like[i])[:2]
            total = sum(math.exp(like[i]) for i in best)
            want = sum(math.exp(like[i]) / total * (pairs[i][1] @ (pairs[i][0] @ token)) for i in best)
            torch.testing.assert_close(added[row, at], want, rtol=1e-3, atol=1e-5)
    assert added.abs().max() > 1e-3 and t.count() == 0 and t.nbytes == 0


def test_the_directions_are_those_of_the_updates():
    _, t, *_, pairs = stand("arrow")
    got = t.pools[f"{SITE}.v"]
    for v, (A, B) in zip(got, pairs):
        far = ((B @ A) @ v).norm() / torch.linalg.matrix_norm(B @ A, 2)
        torch.testing.assert_close(far, torch.ones(()), rtol=1e-4, atol=1e-5)
