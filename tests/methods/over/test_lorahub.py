"""LoRAHub against its formula, and what its weights add to the loss."""

import pytest
import torch

import commonweight as cw

from .below import stand


def test_formula():
    _, t, x, _, added, pairs = stand("lorahub")
    c = t.pools["weights"].detach()
    A, B = (torch.stack([w * p[i] for w, p in zip(c, pairs)]).sum(0) for i in (0, 1))
    torch.testing.assert_close(added, x @ A.T @ B.T, rtol=1e-4, atol=1e-5)
    assert t.count() == 3


def test_the_start_and_the_penalty():
    _, t, *_ = stand("lorahub", stirred=False)
    assert t.pools["weights"].tolist() == pytest.approx([1 / 3] * 3)
    about = cw.methods.OVER.get("lorahub")
    with torch.no_grad():
        t.pools["weights"].copy_(torch.tensor([1.0, -2.0, 0.0]))
    assert about.penalty is not None
    assert float(about.penalty(t.config, t.plan, t.pools).detach()) == pytest.approx(0.05)
