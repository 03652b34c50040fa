"""Sharing by gradients: who disagrees is split, and nothing changes by the split alone."""

from itertools import combinations

import pytest
import torch

from commonweight import CommonweightError, share
from commonweight.share import splitting
from tests.share.deep import IDS, KINDS, answer, far, llama

ROWS = [IDS[0].tolist(), IDS[1].tolist()]


def test_distances_of_the_same_and_of_opposite_gradients():
    g = torch.randn(9, generator=torch.Generator().manual_seed(0))
    d = splitting.distances([g, 3 * g, -g])
    assert d[0][1] == pytest.approx(0, abs=1e-6) and d[0][2] == pytest.approx(2, abs=1e-6)


def test_a_partition_is_the_best_of_all():
    """Every way written out once more; what agrees has nothing to gain."""
    g = torch.Generator().manual_seed(1)
    d = torch.rand(6, 6, generator=g)
    d = ((d + d.T) * (1 - torch.eye(6))).tolist()
    _, a, b = splitting.partition(range(6), d)
    cost = lambda h: sum(d[i][j] for part in (h, set(range(6)) - set(h)) for i, j in combinations(sorted(part), 2))  # noqa: E731
    best = min(cost(set(h)) for n in (1, 2, 3) for h in combinations(range(6), n))
    assert cost(set(a)) == pytest.approx(best) and sorted(a + b) == list(range(6)) and 0 in a
    same = [[0.0] * 4 for _ in range(4)]
    assert splitting.partition(range(4), same)[0] == 0
    opposite = [[0.0 if (i < 2) == (j < 2) else 2.0 for j in range(4)] for i in range(4)]
    assert splitting.partition(range(4), opposite) == (2.0, [0, 1], [2, 3])
    many = [[(abs(i - j) > 9 and (i < 10) != (j < 10) and 2.0) or 0.0 for j in range(20)] for i in range(20)]
    assert len(splitting.partition(range(20), many)[1]) in range(1, 20)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_the_depths_sum_to_that_of_the_unit(kind):
    small = share.share(KINDS[kind](), "recursive", loops=6, init="average")
    got = splitting.gradients(small, ROWS)
    if kind == "bert":
        loss = small(IDS, attention_mask=torch.ones_like(IDS)).last_hidden_state.square().mean() / 2
    else:
        loss = small(IDS, labels=IDS).loss
    loss.backward()
    blocks = small.get_submodule(share.anatomy(small).path)
    want = torch.cat([p.grad.flatten() for p in blocks[0].parameters() if p.dim() == 2])
    assert torch.allclose(sum(got), want, atol=1e-6)


def test_after_a_split_the_answers_are_the_same_and_the_optimizer_goes_on():
    small = share.share(llama(), "recursive", loops=3, share_norms=False, relax=2)
    optimizer = torch.optim.Adam(small.parameters())
    small(IDS, labels=IDS).loss.backward()
    optimizer.step()
    before, size = answer(small), sum(p.numel() for p in small.parameters())
    old = small.model.layers[0].mlp.up_proj.weight
    got = splitting.split(small, ROWS, optimizer)
    assert len(got) == 3 and sorted(d for g in got for d in g) == list(range(6))
    assert far(answer(small), before) == 0
    assert sum(p.numel() for p in small.parameters()) > size
    new = [b.mlp.up_proj.weight for b in small.model.layers]
    ids = {id(p) for p in new}
    assert len(ids) == 3
    fresh = next((p for p in new if p is not old and torch.equal(p, old)), None)
    if fresh is not None:
        assert torch.equal(optimizer.state[fresh]["exp_avg"], optimizer.state[old]["exp_avg"])
    held = {id(p) for g in optimizer.param_groups for p in g["params"]}
    assert ids <= held


def test_split_again_and_again_then_saved(tmp_path):
    small = share.share(llama(), "recursive", loops=6)
    for n in range(2, 7):
        assert len(splitting.split(small, ROWS)) == n
    with pytest.raises(CommonweightError, match="no depths share their layers; nothing can be split"):
        splitting.split(small, ROWS)
    small = share.share(llama(), "recursive", loops=6)
    splitting.split(small, ROWS)
    share.save(small, tmp_path / "s")
    again = share.load(tmp_path / "s")
    assert far(answer(again), answer(small)) == 0
    assert sum(p.numel() for p in again.parameters()) == sum(p.numel() for p in small.parameters())


def test_layers_that_agree_share():
    """Copies of two layers in turn: those of one kind end in one unit."""
    model = llama()
    with torch.no_grad():
        for block in model.model.layers:
            for p in block.parameters():
                if p.dim() == 1:
                    p.fill_(1.0)
    small = share.share(model, "matching", units=2, rows=ROWS)
    layout = share.layout(model, "matching", units=2, rows=ROWS)
    assert len({u.reads["weight"].pools[0] for u in layout.plan.uses if u.site.endswith("up_proj.weight")}) == 2
    assert len({id(b.mlp.up_proj.weight) for b in small.model.layers}) == 2
    with pytest.raises(CommonweightError, match="matching: 7 units of 6 layers"):
        share.share(model, "matching", units=7, rows=ROWS)
