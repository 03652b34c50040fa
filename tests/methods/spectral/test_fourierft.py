"""FourierFT against a two-dimensional transform, written out."""

import math

import pytest
import torch

import commonweight as cw
from commonweight.methods.spectral.fourierft import Spectrum, dense
from tests.laws.subjects import stir
from tests.models import make

SMALL = {"n_frequency": 20}
NAME = "model.layers.1.mlp.up_proj"


def test_formula():
    host = cw.Host(make("llama")[0])
    tenant = stir(host.add("t", "fourierft", n_frequency=20, scaling=30.0))
    c, places = tenant.pools[f"{NAME}.c"].detach(), tenant.pools["fourierft.64x32"].long()
    i, j = torch.arange(64.0)[:, None], torch.arange(32.0)
    turned = [(p // 32) * i / 64 + (p % 32) * j / 32 for p in places.tolist()]
    change = sum(value * torch.cos(2 * math.pi * t) for value, t in zip(c, turned, strict=True)) / (64 * 32)
    torch.testing.assert_close(host.merged("t")[f"{NAME}.weight"], host.weight(NAME) + 30.0 * change)


def test_count_and_places():
    sites = [cw.Site(f"{i}.q", 48, 32) for i in range(3)]
    plan = cw.plan("fourierft", sites, n_frequency=100)
    assert plan.count() == 300 and plan.readers()["fourierft.48x32"] == 3 and plan.nbytes == 1200


def test_more_than_there_are():
    with pytest.raises(cw.CommonweightError, match=r"q: n_frequency=65 is more than the 64 numbers of a weight"):
        cw.plan("fourierft", [cw.Site("q", 8, 8)], n_frequency=65)


@pytest.mark.parametrize("shape", [(7, 5), (8, 6), (6, 9), (1, 4), (5, 1), (2, 2)])
def test_few_tokens_and_many_give_the_same(shape):
    out, inp = shape
    g = torch.Generator().manual_seed(out)
    n = max(1, out * inp // 2)
    c, places = (
        torch.randn(n, generator=g, dtype=torch.double, requires_grad=True),
        torch.randperm(out * inp, generator=g)[:n].int(),
    )
    bind, x, w = Spectrum(150.0), torch.randn(40, inp, generator=g).double(), torch.zeros(out, inp)
    y = torch.zeros(40, out).double()
    many = bind.output(x, y, None, c, places)
    assert dense(x, y, c) and not dense(x[:1], y[:1], c)
    few = torch.cat([bind.output(x[i : i + 1], y[i : i + 1], None, c, places) for i in range(40)])
    torch.testing.assert_close(many, few)
    torch.testing.assert_close(many, x @ bind.weight(w.double(), c, places).T)
    up = torch.randn(40, out, generator=g).double()
    grads = [torch.autograd.grad(v, c, up)[0] for v in (many, few)]
    torch.testing.assert_close(*grads)
