"""TinyLoRA against its formula."""

import torch

import commonweight as cw
from tests.laws.subjects import stir
from tests.models import make

SMALL = {"rank": 2, "vectors": 5}
VARIANTS = [{"groups": 3}, {"stored": True}]
NAME = "model.layers.1.mlp.up_proj"


def test_formula():
    host = cw.Host(make("llama")[0])
    tenant = stir(host.add("t", "tinylora", rank=2, vectors=5), std=1.0)
    v, P = tenant.pools[f"{NAME}.v"].detach(), tenant.pools[f"{NAME}.P"]
    u, s, vt = torch.linalg.svd(host.weight(NAME), full_matrices=False)
    sign = torch.sign(vt.gather(1, vt.abs().argmax(1, keepdim=True)))[:2]
    A, B = s[:2, None].sqrt() * vt[:2] * sign, u[:, :2] * sign.T * s[:2].sqrt()
    want = host.weight(NAME) + B @ sum(v[i] * P[i] for i in range(5)) @ A
    torch.testing.assert_close(host.merged("t")[f"{NAME}.weight"], want, rtol=1e-4, atol=1e-5)


def test_thirteen_numbers():
    sites = [cw.Site(f"layers.{i}.q", 48, 32) for i in range(7)]
    plan = cw.plan("tinylora", sites, vectors=13, groups=1)
    assert plan.count() == 13 and plan.readers()["tinylora.v0"] == 7
    assert cw.plan("tinylora", sites, vectors=13, groups=9).count() == 7 * 13
    assert cw.plan("tinylora", sites, vectors=13).count() == 7 * 13


def test_a_step_moves_the_core_as_far_however_many_numbers_there_are():
    """Of Adam, which moves each number by the rate: along the signs of their gradients."""
    moved = []
    for u in (64, 4096):
        tenant = cw.Host(make("llama")[0], sites=NAME).add("t", "tinylora", vectors=u)
        (group,) = tenant.param_groups(1.0)
        P = tenant.pools[f"{NAME}.P"]
        moved.append(group["lr"] * (P[:, 0, 0].sign()[:, None, None] * P).sum(0)[0, 0])
    assert 0.8 < moved[0] / moved[1] < 1.25
