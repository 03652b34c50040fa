"""ShareLoRA against its formula, written out."""

import pytest
import torch

import commonweight as cw
from tests.laws.subjects import stir
from tests.models import make

SMALL = {"rank": 3}
VARIANTS = [{"share": "B"}, {"share": "AB", "alpha": 2.0}]


@pytest.mark.parametrize("share", ["A", "B", "AB"])
def test_formula(share):
    model, _ = make("llama")
    host = cw.Host(model)
    tenant = stir(host.add("t", "sharelora", rank=4, alpha=6.0, share=share))
    merged = host.merged("t")
    for layer in range(2):
        name, family = f"model.layers.{layer}.mlp.up_proj", "model.layers.*.mlp.up_proj"
        A = tenant.pools[f"{family if 'A' in share else name}.A"].detach()
        B = tenant.pools[f"{family if 'B' in share else name}.B"].detach()
        torch.testing.assert_close(merged[f"{name}.weight"], host.weight(name) + 1.5 * B @ A)


@pytest.mark.parametrize(("share", "count"), [("A", 8 * (64 + 32 * 128)), ("B", 8 * (32 * 64 + 128)), ("AB", 8 * 192)])
def test_count_is_the_papers(share, count):
    sites = [cw.Site(f"layers.{i}.up_proj", 128, 64) for i in range(32)]
    assert cw.plan("sharelora", sites, rank=8, share=share).count() == count


def test_sharing_a_on_a_square_layer_nearly_halves_lora():
    sites = [cw.Site(f"layers.{i}.q_proj", 4096, 4096) for i in range(32)]
    assert cw.plan("sharelora", sites, rank=8).count() == 8 * 4096 * 33
    assert cw.plan("sharelora", sites, rank=8, share="AB").count() * 32 == cw.plan("lora", sites, rank=8).count()
