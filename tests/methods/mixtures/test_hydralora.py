"""HydraLoRA against its formula, token by token."""

import torch

import commonweight as cw

from .tokens import mixture, site

SMALL = {"rank": 2}


def test_formula():
    pools, x, got = site("hydralora", rank=2, experts=3, alpha=6.0)
    want = 3.0 * mixture(x, lambda z: torch.exp(z) / torch.exp(z).sum(), pools, 2)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    assert want.abs().max() > 0.01


def test_count():
    assert cw.plan("hydralora", [cw.Site("q", 48, 32)], rank=2, experts=3).count() == 2 * 32 + 3 * (2 * 48 + 32)
