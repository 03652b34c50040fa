"""LoTR against the Tucker-2 formula, written out as one tensor."""

import math

import torch

import commonweight as cw
from tests.laws.subjects import stir
from tests.models import make

SMALL = {"rank": 3}


def test_formula():
    model, _ = make("llama")
    host = cw.Host(model)
    tenant = stir(host.add("t", "lotr", rank=4, alpha=6.0))
    merged = host.merged("t")
    names = [f"model.layers.{i}.mlp.up_proj" for i in range(2)]
    family = "model.layers.*.mlp.up_proj"
    core = torch.stack([tenant.pools[f"{n}.C"].detach() for n in names])
    u, v = tenant.pools[f"{family}.U"].detach(), tenant.pools[f"{family}.V"].detach().T
    delta = torch.einsum("op,lpq,iq->loi", u, core, v)
    for layer, name in enumerate(names):
        torch.testing.assert_close(merged[f"{name}.weight"], host.weight(name) + 1.5 * delta[layer])


def test_count_is_the_papers():
    sites = [cw.Site(f"layers.{i}.{n}_proj", 4096, 4096) for i in range(32) for n in "qv"]
    assert cw.plan("lotr", sites, rank=16).count() == 2 * 16 * (4096 + 4096) + 64 * 16 * 16


def test_the_start():
    """U with variance 1 / r, V as LoRA's A: uniform within 1 / sqrt(d_in), C zero."""
    torch.manual_seed(0)
    net = torch.nn.ModuleDict({"layers": torch.nn.ModuleList(torch.nn.Linear(128, 256) for _ in range(2))})
    pools = cw.Host(net, sites="layers.*").add("t", "lotr", rank=16).pools
    u, v = pools["layers.*.U"].detach(), pools["layers.*.V"].detach()
    assert u.shape == (256, 16) and abs(u.std() * math.sqrt(16) - 1) < 0.05 and abs(u.mean()) < 0.02
    assert v.shape == (16, 128) and v.abs().max() <= 1 / math.sqrt(128) and abs(v.std() * math.sqrt(3 * 128) - 1) < 0.05
    assert not pools["layers.0.C"].any() and not pools["layers.1.C"].any()
