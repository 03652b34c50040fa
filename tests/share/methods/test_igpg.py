"""Weights written in a vocabulary of chunks."""

import pytest
import torch

from commonweight import CommonweightError, share
from commonweight.share.vocabulary import chunks, nearest
from tests.share.deep import KINDS, answer, far, gpt2, llama
from tests.share.methods.healing import falls


@pytest.mark.parametrize("kind", KINDS)
def test_as_many_entries_as_chunks_are_the_original(kind):
    model = KINDS[kind]()
    assert far(answer(share.share(model, "igpg", entries=1024, chunk=128)), answer(model)) < 1e-4


@pytest.mark.parametrize("make", [llama, gpt2])
def test_formula(make):
    small = share.share(make(), "igpg", entries=20, chunk=6, dim=4)
    layer = next(m for m in small.modules() if hasattr(m, "weight_tokens"))
    entries, decoder = layer.weight_pool.detach(), layer.weight_decoder.detach()
    flat = torch.cat([decoder @ entries[int(t)] for t in layer.weight_tokens])
    shape = layer.weight.shape
    want = flat[: shape.numel()].view(shape) * layer.weight_size[1] + layer.weight_size[0]
    assert torch.allclose(layer.weight, want, atol=1e-6) and layer.weight_tokens.dtype == torch.int16


def test_more_entries_lose_less():
    model = llama()
    w = model.model.layers[3].mlp.up_proj.weight
    lost = [
        float((share.share(model, "igpg", entries=k, chunk=4).model.layers[3].mlp.up_proj.weight - w).detach().norm())
        for k in (8, 64, 512)
    ]
    assert lost[0] > lost[1] > lost[2]


def test_chunks_come_back_in_order():
    w = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    c = chunks(w, 4)
    assert c.shape == (9, 4) and torch.equal(nearest(c, c), torch.arange(9))
    assert torch.allclose(c.flatten()[:35].view(5, 7) * w.std() + w.mean(), w, atol=1e-6)


def test_bytes_are_those_of_the_plan(tmp_path):
    layout = share.layout(llama(), "igpg", entries=32, chunk=8)
    tokens = sum(p.nbytes for n, p in layout.plan.pools.items() if n.endswith(".tokens"))
    numbers = sum(p.numel() for n, p in llama().named_parameters() if p.dim() == 2 and "layers" in n)
    assert tokens == 2 * numbers // 8
    small = share.share(llama(), "igpg", entries=32, chunk=8)
    share.save(small, tmp_path / "s", "unrolled")
    from transformers import AutoModelForCausalLM

    assert far(answer(AutoModelForCausalLM.from_pretrained(tmp_path / "s")), answer(small)) < 1e-5
    with pytest.raises(CommonweightError, match="dim=9 is wider than a chunk of 8"):
        share.share(llama(), "igpg", dim=9)


def test_entries_are_healed(tmp_path):
    falls("igpg", {"entries": 32, "chunk": 4}, tmp_path)
