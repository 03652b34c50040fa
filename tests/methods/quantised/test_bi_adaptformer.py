"""Bi-AdaptFormer against its formula on the model's own modules, its file, and the end of a training."""

import copy

import pytest
import torch

import commonweight as cw
from commonweight.adapt import adapt, open_host
from tests.adapt import tiny
from tests.laws.subjects import stir
from tests.methods.adapters.test_parallel import PARTS, Beside
from tests.methods.quantised.test_bi_lora import straight
from tests.models import answer, make

SMALL = {"size": 5}
VARIANTS = [{"stored": True}]


@pytest.mark.parametrize("kind", PARTS)
def test_formula_and_the_stored_form(kind):
    model, batch = make(kind)
    host = cw.Host(model)
    tenant = stir(host.add("t", "bi-adaptformer", size=5, scale=0.5))
    theirs = copy.deepcopy(model)
    blocks, ffn, _ = PARTS[kind]
    for i, block in enumerate(theirs.get_submodule(blocks)):
        down, up = (straight(tenant.pools[f"{blocks}.{i}.{ffn}.{k}"].detach()) for k in ("down", "up"))
        zeros = torch.zeros(len(down)), torch.zeros(len(up))
        setattr(block, ffn, Beside(getattr(block, ffn), (down, zeros[0], up, zeros[1]), 0.5))
    want = answer(theirs, batch)
    with torch.no_grad(), host.route("t"):
        torch.testing.assert_close(answer(model, batch), want, rtol=1e-4, atol=1e-5)
        host.compact("t")
        torch.testing.assert_close(answer(model, batch), want, rtol=1e-4, atol=1e-5)


def test_count_and_bytes_of_the_paper():
    """Twelve blocks of a ViT-B at 32: 73,920 bytes."""
    sites = [cw.Site(f"layers.{i}.mlp", 768, 768, "ffn", "", False) for i in range(12)]
    plan = cw.plan("bi-adaptformer", sites)
    assert plan.count() == 12 * 2 * 32 * 768 and plan.count() // 8 + 12 * 16 == 73_920


@pytest.mark.parametrize("method", ["bi-adaptformer", "bi-lora"])
def test_a_training_ends_with_the_stored_form(bert, tmp_path, method):
    host = open_host(bert, dtype="float32")
    tenant = adapt(host, "t", tiny.rows(8), method=method, batch_size=4, epochs=1).tenant
    assert tenant.config.stored and host["t"].config.stored
    matrices = [p for n, p in tenant.pools.items() if n.endswith((".A", ".B", ".down", ".up"))]
    assert matrices and all(len(p.unique()) == 2 for p in matrices)
    assert host.load("again", host.save("t", tmp_path / "t.safetensors", codec="onebit")).config.stored
