"""SMoRA against its formula, token by token."""

import pytest
import torch

import commonweight as cw

from .tokens import largest, mixture, site

SMALL = {"rank": 6, "active": 2}
SOFT = {**SMALL, "active": 6}
VARIANTS = [{"partition": 2}]


@pytest.mark.parametrize("partition", [1, 2])
def test_formula(partition):
    pools, x, got = site("smora", rank=8, active=4, partition=partition, alpha=3.0)

    def gates(z):
        """Of ranks: k q / sum of those that are in; two ranks of a part have one q."""
        q = torch.sigmoid(z).repeat_interleave(partition)
        return [4 * g for g in largest(q, 4)]

    ranks = {"A": pools["A"], "B": pools["B"], "router": pools["router"]}
    want = 3.0 / 4 * mixture(x, gates, ranks, 1)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    assert want.abs().max() > 0.01


def test_count():
    assert cw.plan("smora", [cw.Site("q", 48, 32)], rank=8, active=4, partition=2).count() == 8 * (48 + 32) + 4 * 32


@pytest.mark.parametrize("options, told", [({"rank": 6, "partition": 4}, "whole parts"), ({"rank": 4}, "at most 4")])
def test_what_does_not_go(options, told):
    with pytest.raises(cw.CommonweightError, match=told):
        cw.plan("smora", [cw.Site("q", 48, 32)], **options)
