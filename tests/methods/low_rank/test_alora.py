"""ALoRA: scores of ranks by the loss, and where ranks go."""

import pytest
import torch

import commonweight as cw
from commonweight.core.schedule import Moment
from commonweight.methods.low_rank.alora import ALoRA, Moving
from tests.laws.subjects import stir
from tests.models import make

SMALL = {"rank": 1, "most": 2, "rounds": 1, "move": 0.1}
VARIANTS = [{"ranks": [["*q_proj", 1], ["*", 2]]}]


def test_a_rank_is_worth_what_the_loss_misses():
    names = ("a", "b")
    way = Moving(ALoRA(rank=2, most=3), names, 5)
    g = torch.Generator().manual_seed(0)
    pools = {f"{n}.{k}": torch.randn(s, generator=g) for n in names for k, s in (("A", (3, 4)), ("B", (5, 3)))}
    target = torch.randn(5, 4, generator=g)

    def loss(values):
        now = {**pools, **values}
        return float((sum(now[f"{n}.B"] @ now[f"{n}.A"] for n in names) - target).square().mean())

    gates = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 1.0]])
    for n, row in zip(names, gates):
        pools[f"{n}.B"] = pools[f"{n}.B"] * row
    got = way.scores(Moment(1, 10, pools, {}, {}, loss), gates)
    for i, n in enumerate(names):
        for j in range(3):
            part = torch.outer(pools[f"{n}.B"][:, j], pools[f"{n}.A"][j])
            whole = sum(pools[f"{m}.B"] @ pools[f"{m}.A"] for m in names)
            want = (whole - part - target).square().mean() - (part - target).square().mean()
            assert got[i, j].item() == pytest.approx(want.item(), abs=1e-5) if gates[i, j] else got[i, j].isinf()


def test_ranks_go_to_sites_that_lost_none():
    way = Moving(ALoRA(rank=2, most=4, move=0.75), ("a", "b", "c", "d"), 5)
    inf = torch.inf
    scores = torch.tensor([[1.0, 9, inf, inf], [5, 5, inf, inf], [6, 6, inf, inf], [2, 0, inf, inf]])
    gates, given = way.moved(scores, scores.isfinite().float())
    assert gates.tolist() == [[0, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1], [0, 0, 0, 0]], "the odd one to the better mean"
    assert given.nonzero().tolist() == [[1, 2], [2, 2], [2, 3]]


@pytest.mark.parametrize("rank, room", [(1, 2), (2, 4), (3, 6), (3, 3)])
def test_no_round_loses_a_rank(rank, room):
    """Every site has its least rank among the least of all: each would lose one, and no site could be given any."""
    way = Moving(ALoRA(rank=rank, most=room, move=1.0), tuple("abcdef"), 5)
    gates = torch.zeros(6, room)
    gates[:, :rank] = 1
    g = torch.Generator().manual_seed(rank)
    for n in range(8):
        scores = torch.where(gates.bool(), torch.rand(6, room, generator=g), torch.inf)
        before, (gates, given) = gates, way.moved(scores, gates)
        assert gates.sum() == before.sum() == 6 * rank and set(gates.view(-1).tolist()) <= {0.0, 1.0}
        assert n or given.any() == (rank < room)
        lost, won = (before * (1 - gates)).any(1), given.any(1)
        assert not (lost & won).any()


def test_a_round_changes_what_it_says():
    way = Moving(ALoRA(rank=1, most=2, rounds=1, begin=0.5, move=0.5), ("a", "b"), 5)
    pools = {f"{n}.{k}": torch.ones(s) for n in "ab" for k, s in (("A", (2, 4)), ("B", (5, 2)))}
    state, edit = way.begin(None, pools, 4)
    assert edit.masks["a.A"].tolist() == [[1.0] * 4, [0.0] * 4] and edit.masks["b.B"][0].tolist() == [1.0, 0.0]
    assert [way.settled(s, 4) for s in (1, 2, 3)] == [False, True, True]
    worth = {"a": 1.0, "b": 2.0}

    def loss(values):  # without a site's only rank, or with it alone
        there = [n for n in "ab" if f"{n}.B" not in values or values[f"{n}.B"].any()]
        return -sum(worth[n] for n in there)

    assert way.after(Moment(1, 4, pools, {}, {}, loss), state)[1] == cw.core.schedule.Edit()
    state, edit = way.after(Moment(2, 4, pools, {}, {}, loss), state)
    assert state["gates"].tolist() == [[0, 0], [1, 1]]
    assert not edit.masks["a.A"].any() and edit.masks["b.B"].all()
    assert not edit.values["b.B"][:, 1].any() and edit.values["b.B"][:, 0].all() and "a.A" not in edit.values
    assert edit.moments["b.A"].tolist() == [[1.0] * 4, [0.0] * 4]
    assert way.after(Moment(3, 4, pools, {}, {}, loss), state)[1] == cw.core.schedule.Edit()


def test_no_site_is_left():
    with pytest.raises(cw.CommonweightError, match="no site with a rank above 0"):
        cw.Host(make("llama")[0]).add("t", "alora", ranks=[["*", 0]])
    with pytest.raises(cw.CommonweightError, match="most=1 is less than rank=2"):
        ALoRA(rank=2, most=1)


def test_formula():
    host, site = cw.Host(make("llama")[0]), "model.layers.1.mlp.up_proj"
    tenant = stir(host.add("t", "alora", rank=2, most=3, alpha=6))
    A, B = (tenant.pools[f"{site}.{k}"].detach() for k in "AB")
    want = host.weight(site) + 3 * sum(torch.outer(B[:, i], A[i]) for i in range(len(A)))
    torch.testing.assert_close(host.merged("t")[f"{site}.weight"], want, rtol=1e-4, atol=1e-5)
