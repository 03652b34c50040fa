"""SMoRA against its formula, token by token."""

import pytest
import torch

import commonweight as cw
from commonweight.core.schedule import Moment

from .tokens import largest, mixture, site

SMALL = {"rank": 6, "active": 2}
SOFT = {**SMALL, "active": 6}
VARIANTS = [{"partition": 2}, {"bias": 0.01}]


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


def test_the_bias_is_in_the_choice_and_in_the_gates():
    def moved(tenant, name):
        tenant.pools[f"{name}.shift"].copy_(torch.linspace(-0.3, 0.3, 4))

    pools, x, got = site("smora", before=moved, rank=8, active=4, partition=2, alpha=3.0, bias=1e-5)

    def gates(z):
        q = (torch.sigmoid(z) + torch.linspace(-0.3, 0.3, 4)).repeat_interleave(2)
        return [4 * g for g in largest(q, 4)]

    torch.testing.assert_close(got, 3.0 / 4 * mixture(x, gates, pools, 1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("partition", [1, 2])
def test_the_bias_moves_against_the_load(partition):
    """As the official code has it, rank by rank: the ranks of a part stay alike."""
    config = {"rank": 4 * partition, "active": 2 * partition, "partition": partition, "bias": 0.0625}
    found, made = cw.methods.resolve("smora", config)
    plan = cw.plan("smora", [cw.Site("q", 8, 8), cw.Site("k", 8, 8)], **config)
    schedule, pools = found.scheduled(made, plan), {"q.shift": torch.zeros(4), "k.shift": torch.zeros(4)}
    g = torch.Generator().manual_seed(0)
    bias = torch.zeros(4 * partition)
    for step in range(1, 6):
        logits, real = torch.randn(9, 4, generator=g) + torch.tensor([2.0, 1, 0, -1]), torch.ones(9)
        real[6:] = 0
        counted = (
            schedule.count({"q": (logits[:4], real[:4])}, pools),
            schedule.count({"q": (logits[4:], real[4:])}, pools),
        )
        n = torch.zeros(4 * partition)
        for z in logits[:6]:
            q = torch.sigmoid(z).repeat_interleave(partition) + bias
            for i in sorted(range(len(q)), key=lambda i: -q[i])[: 2 * partition]:
                n[i] += 1
        bias += 0.0625 * (n.mean() - n).sign()
        _, edit = schedule.after(
            Moment(step, 5, pools, {}, {}, counted={k: sum(c[k] for c in counted) for k in counted[0]}), {}
        )
        assert torch.equal(edit.values["q.shift"].repeat_interleave(partition), bias)
        assert not edit.values["k.shift"].any(), "nobody heard it"
        pools = {**pools, **edit.values}
    assert bias[0] < 0 < bias[-1]


def test_without_a_bias_there_is_no_schedule_and_no_pool():
    found, made = cw.methods.resolve("smora", SMALL)
    plan = cw.plan("smora", [cw.Site("q", 8, 8)], **SMALL)
    assert found.scheduled(made, plan) is None and "q.shift" not in plan.pools


def test_count():
    assert cw.plan("smora", [cw.Site("q", 48, 32)], rank=8, active=4, partition=2).count() == 8 * (48 + 32) + 4 * 32


@pytest.mark.parametrize("options, told", [({"rank": 6, "partition": 4}, "whole parts"), ({"rank": 4}, "at most 4")])
def test_what_does_not_go(options, told):
    with pytest.raises(cw.CommonweightError, match=told):
        cw.plan("smora", [cw.Site("q", 48, 32)], **options)
