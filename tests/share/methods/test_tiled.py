"""Matrices of repeated tiles: the read and its fold number by number, the mean of the copies, the whole as a tile."""

import pytest
import torch

from commonweight import share
from commonweight.address import Repeated, fold
from tests.share.deep import KINDS, answer, far, gpt2, llama


def test_the_read_and_its_fold():
    tile, g = torch.randn(3, 4), torch.randn(7, 10)
    w = Repeated((7, 10))(tile)
    back = torch.zeros(3, 4)
    for i in range(7):
        for j in range(10):
            assert w[i, j] == tile[i % 3, j % 4]
            back[i % 3, j % 4] += g[i, j]
    assert torch.allclose(fold(Repeated((7, 10)), (3, 4), g), back, atol=1e-5)
    assert torch.equal(Repeated((3, 4))(tile), tile) and torch.equal(Repeated((2, 3))(tile), tile[:2, :3])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("parts", ["ffn", "all"])
def test_a_tile_as_large_as_the_matrix_is_the_original(kind, parts):
    model = KINDS[kind]()
    assert far(answer(share.share(model, "tiled", size=128, parts=parts)), answer(model)) < 1e-6


@pytest.mark.parametrize("make", [llama, gpt2])
def test_the_tile_is_the_mean_of_its_copies(make):
    model = make()
    small = share.share(model, "tiled", size=24, common=True)
    name = "mlp.up_proj" if make is llama else "mlp.c_fc"
    blocks, now = (m.get_submodule(share.anatomy(model).path) for m in (model, small))
    layers = [b.get_submodule(name) for b in now]
    assert len({id(layer.weight_pool) for layer in layers}) == 1
    some = [b.get_submodule(name).weight.detach() for b in blocks]
    for i, j in ((0, 0), (5, 23), (23, 3)):
        want = torch.cat([w[i::24, j::24].flatten() for w in some]).mean()
        assert layers[0].weight_pool[i, j].item() == pytest.approx(float(want), abs=1e-6)
    before = share.layout(llama(), "drop", keep=6).count()
    ffn, tiles = 6 * 3 * 32 * 64, 3 * 24 * 24
    assert share.layout(llama(), "tiled", size=24, common=True).count() == before - ffn + tiles


def test_normal_tiles_have_the_scale_of_their_matrix():
    small = share.share(llama(), "tiled", size=64, init="normal", parts="ffn")
    for layer, fan in ((small.model.layers[0].mlp.up_proj, 32), (small.model.layers[0].mlp.down_proj, 64)):
        assert float(layer.weight.detach().std()) == pytest.approx((2 / fan) ** 0.5, rel=0.1)


def test_saved_and_loaded(tmp_path):
    small = share.share(llama(), "tiled", size=16)
    share.save(small, tmp_path / "s")
    again = share.load(tmp_path / "s")
    assert far(answer(again), answer(small)) == 0
    share.save(small, tmp_path / "u", "unrolled")
