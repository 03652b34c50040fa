"""ALoRA: scores of ranks by the loss, and where ranks go."""

import pytest
import torch

import commonweight as cw
from commonweight.core.schedule import Edit, Moment, carried
from commonweight.methods.low_rank.alora import ALoRA, Moving
from tests.laws.subjects import stir
from tests.models import make

SMALL = {"rank": 1, "rounds": 1, "move": 0.1}
VARIANTS = [{"ranks": [["*q_proj", 1], ["*", 2]]}]


def test_a_rank_is_worth_what_the_loss_misses():
    names = ("a", "b")
    way = Moving(ALoRA(rank=2), (*names, "gone"), 5)
    g = torch.Generator().manual_seed(0)
    pools = {f"{n}.{k}": torch.randn(s, generator=g) for n in names for k, s in (("A", (2, 4)), ("B", (5, 2)))}
    target = torch.randn(5, 4, generator=g)

    def loss(values):
        now = {**pools, **values}
        return float((sum(now[f"{n}.B"] @ now[f"{n}.A"] for n in names) - target).square().mean())

    got = way.scores(Moment(1, 10, pools, {}, {}, loss))
    assert list(got) == ["a", "b"]
    for n in names:
        for j in range(2):
            part = torch.outer(pools[f"{n}.B"][:, j], pools[f"{n}.A"][j])
            whole = sum(pools[f"{m}.B"] @ pools[f"{m}.A"] for m in names)
            want = (whole - part - target).square().mean() - (part - target).square().mean()
            assert got[n][j].item() == pytest.approx(want.item(), abs=1e-5)


MANY = dict.fromkeys("abcdefg", 99)


def test_ranks_go_to_sites_that_lost_none():
    way = Moving(ALoRA(rank=2, move=0.75), ("a", "b", "c", "d"), 5)
    scores = {n: torch.tensor(v) for n, v in {"a": [1.0, 9], "b": [5.0, 5], "c": [6.0, 6], "d": [2.0, 0]}.items()}
    found = {n: t.tolist() for n, t in way.moved(scores, MANY).items()}
    assert found == {"a": [1], "b": [0, 1, -1], "c": [0, 1, -1, -1], "d": []}, "the odd one to the better mean"
    found = way.moved(scores, {**MANY, "c": 3})
    assert [len(t) for t in found.values()] == [1, 4, 3, 0], "a site has no more than its matrix can have"


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_no_round_loses_a_rank(rank):
    """Every site has its least rank among the least of all: each would lose one, and no site could be given any."""
    way = Moving(ALoRA(rank=rank, move=1.0), tuple("abcdef"), 5)
    ranks = dict.fromkeys("abcdef", rank)
    g = torch.Generator().manual_seed(rank)
    for n in range(8):
        found = way.moved({s: torch.rand(r, generator=g) for s, r in ranks.items() if r}, MANY)
        assert sum(map(len, found.values())) == 6 * rank
        assert n or any((t < 0).any() for t in found.values())
        for s, t in found.items():
            lost, won = set(range(ranks[s])) - set(t.tolist()), (t < 0).any()
            assert not (lost and won)
        ranks = {s: len(t) for s, t in found.items()}


def test_a_round_changes_what_it_says():
    way = Moving(ALoRA(rank=1, rounds=1, begin=0.5, move=0.5), ("a", "b"), 5)
    pools = {f"{n}.{k}": torch.ones(s) for n in "ab" for k, s in (("A", (1, 4)), ("B", (5, 1)))}
    state, edit = way.begin(None, pools, 4)
    assert edit == Edit() and [way.settled(s, 4) for s in (1, 2, 3)] == [False, True, True]
    worth = {"a": 1.0, "b": 2.0}

    def loss(values):  # without a site's only rank, or with it alone
        there = [n for n in "ab" if f"{n}.B" not in values or values[f"{n}.B"].any()]
        return -sum(worth[n] for n in there)

    assert way.after(Moment(1, 4, pools, {}, {}, loss), state)[1] == Edit()
    state, edit = way.after(Moment(2, 4, pools, {}, {}, loss), state)
    assert edit.config.ranks == (("a", 0), ("b", 2)) and edit.places.keys() == {"b.A", "b.B"}
    assert [t if t is None else t.tolist() for t in edit.places["b.B"]] == [None, [0, -1]]
    A, B = edit.values["b.A"], carried(pools["b.B"], edit.places["b.B"])
    assert A[0].tolist() == [1.0] * 4 and A[1].all() and "b.B" not in edit.values
    assert not B[:, 1].any() and B[:, 0].all()
    assert way.after(Moment(3, 4, pools, {}, {}, loss), state)[1] == Edit()


def test_no_site_is_left():
    with pytest.raises(cw.CommonweightError, match="no site with a rank above 0"):
        cw.Host(make("llama")[0]).add("t", "alora", ranks=[["*", 0]])
    with pytest.raises(cw.CommonweightError, match="'most' is no option of ALoRA any more: a site is given directions"):
        cw.plan("alora", [cw.Site("q", 4, 4)], most=1)


def test_formula():
    host, site = cw.Host(make("llama")[0]), "model.layers.1.mlp.up_proj"
    tenant = stir(host.add("t", "alora", rank=2, alpha=6))
    A, B = (tenant.pools[f"{site}.{k}"].detach() for k in "AB")
    want = host.weight(site) + 3 * sum(torch.outer(B[:, i], A[i]) for i in range(len(A)))
    torch.testing.assert_close(host.merged("t")[f"{site}.weight"], want, rtol=1e-4, atol=1e-5)
