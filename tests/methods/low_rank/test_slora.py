"""SLoRA against its formula, written out."""

import torch

import commonweight as cw
from tests.laws.subjects import stir
from tests.models import make

SMALL = {"rank": 3}


def test_formula():
    model, _ = make("llama")
    host = cw.Host(model)
    tenant = stir(host.add("t", "slora", rank=4, alpha=6.0))
    merged = host.merged("t")
    name = "model.layers.1.mlp.up_proj"
    A, M, B = (tenant.pools[f"{name}.{k}"].detach() for k in "AMB")
    torch.testing.assert_close(merged[f"{name}.weight"], host.weight(name) + 1.5 * B @ M @ A)


def test_count_is_loras_and_one_small_matrix_per_site():
    sites = [cw.Site(f"layers.{i}.q_proj", 4096, 4096) for i in range(32)]
    assert cw.plan("slora", sites, rank=128).count() == cw.plan("lora", sites, rank=128).count() + 32 * 128 * 128


def test_the_papers_additional_parameters():
    # 32 layers of 7 projections at rank 128: the 3.67 million that the paper names
    assert 32 * 7 * 128 * 128 == 3_670_016
