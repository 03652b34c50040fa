"""ASLoRA: which B are merged, when, and what is left."""

from types import SimpleNamespace

import pytest
import torch

from commonweight import CommonweightError, share
from commonweight.share.merging import Merging
from tests.share.deep import answer, far, gpt2, llama
from tests.share.prose import healed


def at(step):
    return SimpleNamespace(step=step)


def b(small, depth, kind="self_attn.q_proj"):
    return small.model.layers[depth].get_submodule(kind).B


def test_it_begins_as_the_model_and_a_is_one():
    small = share.share(llama(), "aslora", rank=3)
    assert far(answer(small), answer(llama())) == 0
    layers = [x.self_attn for x in small.model.layers]
    assert len({id(x.q_proj.A) for x in layers}) == 1 and len({id(x.q_proj.B) for x in layers}) == 6
    assert layers[0].q_proj.A is not layers[0].v_proj.A and not hasattr(layers[0].k_proj, "A")


@pytest.mark.parametrize("by", ["means", "disturbance"])
def test_neighbours_that_are_nearest_are_merged_on_schedule(by, tmp_path):
    small = share.share(llama(), "aslora", rank=3)
    merging = Merging(small, start=2, every=3, groups=4, by=by)
    with torch.no_grad():
        for d, value in enumerate((0.0, 5.0, 6.0, 6.5, 9.0, 5.1)):
            for kind in ("self_attn.q_proj", "self_attn.v_proj"):
                b(small, d, kind).fill_(value)
    seen = []
    for step in range(1, 15):
        merging(at(step))
        seen.append(len({id(b(small, d)) for d in range(6)}))
    assert seen == [6, 6, 6, 6, 5, 5, 5, 4, 4, 4, 4, 4, 4, 4]  # at steps 5 and 8; four are left
    assert b(small, 2) is b(small, 3) and float(b(small, 2).detach().mean()) == 6.5  # the upper one's
    assert b(small, 1) is b(small, 2) and b(small, 4) is not b(small, 5)
    share.save(small, tmp_path / "s")
    assert far(answer(share.load(tmp_path / "s")), answer(small)) == 0


def test_running_means_by_hand():
    small = share.share(llama(), "aslora", rank=2)
    merging = Merging(small, 100, 1)
    for step, value in enumerate((1.0, 4.0, 7.0), 1):
        b(small, 0).data.fill_(value)
        merging(at(step))
    assert torch.allclose(merging.means["self_attn.q_proj"][0], torch.full((32, 2), 4.0))


def test_heal_trains_updates_alone_until_one_is_left():
    """All merged: A and B of all layers are one, as ShareLoRA has them."""
    small = share.share(llama(), "aslora", rank=4)
    before = small.model.layers[0].mlp.up_proj.weight.detach().clone()
    losses = healed(small, 8000, progress=Merging(small, start=4, every=2))
    assert losses[-1] < losses[0]
    assert len({id(b(small, d)) for d in range(6)}) == 1 and b(small, 0).any()
    assert torch.equal(small.model.layers[0].mlp.up_proj.weight, before)
    assert sum(p.numel() for p in small.parameters() if p.requires_grad) == 4 * (32 + 32) + 4 * (32 + 16)


def test_refusals():
    with pytest.raises(CommonweightError, match="has no updates that share A; make it with method aslora"):
        Merging(share.share(llama(), "recursive", relax=2), 1, 1)
    for wrong in ({"every": 0}, {"every": 1, "groups": 0}, {"every": 1, "by": "x"}):
        with pytest.raises(CommonweightError, match=r"wanted numbers of at least 1, and means or disturbance"):
            Merging(share.share(llama(2), "aslora"), 1, **wrong)
    merging = Merging(share.share(llama(), "aslora"), 1, 1)
    with pytest.raises(CommonweightError, match="has seen 0 steps and is told of step 7; a run that merges cannot"):
        merging(at(7))
    with pytest.raises(CommonweightError, match="no layer is one of gate; these have attn_out"):
        share.share(gpt2(), "aslora", roles=("gate",))
