"""C3A against its blocks, written out."""

import pytest
import torch

import commonweight as cw
from tests.laws.subjects import stir
from tests.models import make

SMALL = {"block_size": 8}
VARIANTS = [{"block_size": None}, {"block_size": 8, "block_sizes": (("*q_proj", 4), ("*down_proj", 16))}]
NAME = "model.layers.1.mlp.up_proj"


def test_formula():
    host = cw.Host(make("llama")[0])
    k = stir(host.add("t", "c3a", block_size=8)).pools[f"{NAME}.k"].detach()
    change = torch.tensor([[k[i // 8, j // 8, (j - i) % 8] for j in range(32)] for i in range(64)]) / 32
    torch.testing.assert_close(host.merged("t")[f"{NAME}.weight"], host.weight(NAME) + change)


def test_count_and_the_default():
    assert cw.plan("c3a", [cw.Site("q", 4096, 4096)], block_size=128).count() == 4096 * 32
    assert cw.plan("c3a", [cw.Site("up", 3072, 768)]).count() == 3072


def test_a_size_that_does_not_divide():
    with pytest.raises(cw.CommonweightError, match=r"q: block_size=5 does not divide both widths 12 and 8; .*1, 2, 4"):
        cw.plan("c3a", [cw.Site("q", 8, 12)], block_size=5)


def test_blocks_of_other_sizes_for_some_sites():
    sites = [cw.Site("a.q", 8, 12), cw.Site("a.up", 16, 8), cw.Site("b.up", 16, 8)]
    plan = cw.plan("c3a", sites, block_size=2, block_sizes=(("a.up", 8), ("*.up", 4)))
    assert {n: p.shape for n, p in plan.pools.items()} == {"a.q.k": (4, 6, 2), "a.up.k": (2, 1, 8), "b.up.k": (4, 2, 4)}
    with pytest.raises(cw.CommonweightError, match=r"a\.q: block_size=8 does not divide both widths 12 and 8"):
        cw.plan("c3a", sites, block_sizes=(("*.q", 8),))
    with pytest.raises(cw.CommonweightError, match=r"block_sizes gives '\*.q' the value 0; it must be > 0"):
        cw.plan("c3a", sites, block_sizes=(("*.q", 0),))
