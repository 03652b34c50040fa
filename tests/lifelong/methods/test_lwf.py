from __future__ import annotations

import torch

from commonweight.lifelong.losses import softened


def test_softened_answers_are_those_of_the_paper():
    """arXiv 1606.09282, eqs. (2) to (4): probabilities to the power 1 / T, normalised."""
    g = torch.Generator().manual_seed(0)
    old, new = torch.randn(5, 3, generator=g), torch.randn(5, 3, generator=g)
    p, q = old.softmax(1), new.softmax(1)
    p, q = p**0.5 / (p**0.5).sum(1, keepdim=True), q**0.5 / (q**0.5).sum(1, keepdim=True)
    assert torch.allclose(softened(old, new, 2.0), -(p * q.log()).sum(1).mean(), atol=1e-6)
