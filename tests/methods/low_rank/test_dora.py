"""DoRA against the paper's equation, written out."""

import copy

import pytest
import torch

import commonweight as cw
from commonweight.bind import Magnitude
from tests.laws.subjects import stir
from tests.models import answer, make

SMALL = {"rank": 3}
NAME = "model.layers.1.mlp.up_proj"


def test_formula():
    model, _ = make("llama")
    host = cw.Host(model)
    tenant = stir(host.add("t", "dora", rank=4, alpha=6.0))
    A, B, m = (tenant.pools[f"{NAME}.{k}"].detach() for k in "ABm")
    v = host.weight(NAME) + 1.5 * B @ A
    want = torch.stack([m[i] * v[i] / v[i].square().sum().sqrt() for i in range(len(v))])
    torch.testing.assert_close(host.merged("t")[f"{NAME}.weight"], want)


def test_the_magnitude_starts_at_the_rows_lengths_and_the_length_gets_no_gradient():
    w, x = torch.randn(6, 5), torch.randn(3, 5)
    A, B, m = (torch.rand(s, requires_grad=True) for s in ((2, 5), (6, 2), (6,)))
    bind = Magnitude(0.5)

    class Base:
        weight, bias, training = w, None, False

        def call(self, x, weight, bias):
            return torch.nn.functional.linear(x, weight, bias)

    fast = torch.autograd.grad(bind.output(x, x @ w.T, Base(), A, B, m, w.norm(dim=1)).square().sum(), (A, B, m))
    v = w + 0.5 * B @ A
    slow = torch.autograd.grad((x @ (v * (m / v.detach().norm(dim=1))[:, None]).T).square().sum(), (A, B, m))
    for a, b in zip(fast, slow):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    model, _ = make("llama")
    host = cw.Host(model)
    torch.testing.assert_close(host.add("t", "dora").pools[f"{NAME}.m"].detach(), host.weight(NAME).norm(dim=1))


@pytest.mark.parametrize("rslora,scale", [(False, 1.5), (True, 3.0)])
def test_scale_ranks_and_count(rslora, scale):
    sites = [cw.Site("q", 8, 6), cw.Site("v", 4, 6)]
    plan = cw.plan("dora", sites, rank=4, alpha=6.0, rslora=rslora, ranks=(("v", 1),), alphas=(("v", 5.0),))
    assert [u.bind.scale for u in plan.uses] == [scale, 5.0]
    assert plan.count() == 4 * (8 + 6) + 8 + 1 * (4 + 6) + 4


def test_a_row_of_zeros_stays_finite():
    w, A, B, m = torch.zeros(2, 3), torch.randn(1, 3), torch.zeros(2, 1), torch.zeros(2)
    bind = Magnitude()
    assert torch.equal(bind.weight(w, A, B, m, m), w)
    assert torch.equal(bind.length(w, A, B, m), torch.full((2,), 1e-12))


def test_small_gains_survive_bfloat16():
    model, batch = make("llama")
    host = cw.Host(copy.deepcopy(model).bfloat16())
    tenant = host.add("t", "dora", rank=2)
    base = answer(host.model, batch)
    with torch.no_grad(), host.route("t"):
        assert torch.equal(answer(host.model, batch), base)
        x = torch.randn(2, 32).bfloat16()
        layer = host.model.get_submodule(NAME)
        tenant.pools[f"{NAME}.m"].mul_(1.003)
        moved = layer(x).float() - torch.nn.functional.linear(x, layer.weight).float()
    assert moved.abs().sum() > 0, "1.003 is 1 in bfloat16, and yet y must move"


def test_dropout_in_training_only():
    model, batch = make("llama")
    host = cw.Host(model)
    stir(host.add("t", "dora", rank=2, dropout=0.5))
    with torch.no_grad(), host.route("t"):
        still = answer(model, batch)
        assert torch.equal(still, answer(model, batch))
        model.train()
        assert not torch.equal(still, answer(model, batch))
