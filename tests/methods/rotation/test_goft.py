"""GOFT against its stages written as whole matrices."""

import math

import pytest
import torch

import commonweight as cw
from commonweight.bind.givens import Givens, pairs
from tests.laws.subjects import stir
from tests.models import make

SMALL = {}
VARIANTS = [{"quasi": True}, {"scale": True}]


def rotation(width, blocks):
    """R = P_m ... P_1; a stage turns the coordinates that are still in the tournament."""
    R, live, at = torch.eye(width).double(), list(range(width)), 0
    while len(live) > 1:
        P = torch.eye(width).double()
        for k in range(len(live) // 2):
            i, j = live[2 * k], live[2 * k + 1]
            P[[i, i, j, j], [i, j, i, j]] = blocks[at].double().flatten()
            at += 1
        R, live = P @ R, live[::2]
    assert at == len(blocks)
    return R


@pytest.mark.parametrize("width", [2, 3, 6, 7, 12, 16, 24])
def test_stages(width):
    assert sum(n for _, n in pairs(width)) == width - 1
    t = torch.randn(width - 1)
    blocks = torch.stack([
        torch.tensor([[math.cos(a), -math.sin(a)], [math.sin(a), math.cos(a)]]) for a in (math.pi * t.tanh()).tolist()
    ])  # fmt: skip
    R = rotation(width, blocks)
    torch.testing.assert_close(R @ R.T, torch.eye(width).double())
    x, w = torch.randn(5, width), torch.randn(4, width)
    bind = Givens()
    torch.testing.assert_close(bind.input(x, None, t).double(), x.double() @ R, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(bind.weight(w, t).double(), w.double() @ R.T, rtol=1e-4, atol=1e-4)


def test_neighbours_at_every_stage_are_no_rotation():
    """Version 2 of the released code: cosines and sines stand at the stage's stride, a coordinate's partner is its
    neighbour. The first stage alone turns."""
    width, eye = 16, torch.eye(16).double()

    def stage(stride):
        c, s = torch.ones(width).double(), torch.zeros(width).double()
        for k in range(0, width, 2 * stride):
            a = 0.5 + k / width
            c[k] = c[k + stride] = math.cos(a)
            s[k], s[k + stride] = -math.sin(a), math.sin(a)
        partner = torch.arange(width).reshape(-1, 2).flip(1).flatten()
        return torch.diag(c) + torch.diag(s)[:, torch.argsort(partner)]

    off = [float((P @ P.T - eye).norm()) for P in map(stage, (1, 2, 4, 8))]
    assert off[0] < 1e-9 and min(off[1:]) > 0.3
    t = torch.randn(width - 1)
    R = Givens().weight(torch.eye(width), t).double()
    torch.testing.assert_close(R @ R.T, eye, rtol=0, atol=1e-5)


def test_quasi():
    host = cw.Host(make("llama")[0], sites="*.q_proj")
    tenant = stir(host.add("t", "goft", quasi=True, penalty=0.5))
    want = 0.0
    for site in host.sites:
        G = tenant.pools[f"{site.name}.G"].detach()
        R = rotation(site.inp, G)
        got = host.merged("t")[f"{site.name}.weight"].double()
        torch.testing.assert_close(got, host.weight(site.name).double() @ R.T, rtol=1e-3, atol=1e-4)
        want += sum(float(g[:, 0] @ g[:, 1]) ** 2 for g in G)
    got = tenant.method.penalty(tenant.config, tenant.plan, tenant.pools)
    assert got.item() == pytest.approx(0.5 * want, rel=1e-4)


def test_a_factor_for_each_turned_input():
    """Version 1 of the released code: R diag(c) on rows."""
    host = cw.Host(make("llama")[0], sites="*.q_proj")
    tenant = stir(host.add("t", "goft", scale=True))
    for site in host.sites:
        t, c = (tenant.pools[f"{site.name}.{k}"].detach() for k in "tc")
        turns = [[[math.cos(a), -math.sin(a)], [math.sin(a), math.cos(a)]] for a in (math.pi * t.tanh()).tolist()]
        want = host.weight(site.name).double() @ torch.diag(c.double()) @ rotation(site.inp, torch.tensor(turns)).T
        torch.testing.assert_close(host.merged("t")[f"{site.name}.weight"].double(), want, rtol=1e-3, atol=1e-4)
    assert cw.plan("goft", [cw.Site("q", 8, 16)], scale=True).count() == 15 + 16
    with pytest.raises(cw.CommonweightError, match="quasi with scale"):
        cw.plan("goft", [cw.Site("q", 8, 16)], scale=True, quasi=True)
