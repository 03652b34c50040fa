"""LoRA against its formula, written out."""

import torch

import commonweight as cw
from tests.laws.subjects import stir
from tests.models import make

SMALL = {"rank": 3}


def test_formula():
    model, _ = make("llama")
    host = cw.Host(model)
    tenant = stir(host.add("t", "lora", rank=4, alpha=6.0))
    merged = host.merged("t")
    name = "model.layers.1.mlp.up_proj"
    A, B = tenant.pools[f"{name}.A"], tenant.pools[f"{name}.B"]
    torch.testing.assert_close(merged[f"{name}.weight"], host.weight(name) + 1.5 * B.detach() @ A.detach())


def test_rslora_scale():
    sites = [cw.Site("q", 8, 8)]
    assert cw.plan("lora", sites, rank=4, alpha=6.0, rslora=True).uses[0].bind.scale == 3.0


def test_count_is_the_papers():
    sites = [cw.Site(f"layers.{i}.q_proj", 4096, 4096) for i in range(32)]
    assert cw.plan("lora", sites, rank=8).count() == 32 * 8 * (4096 + 4096)
