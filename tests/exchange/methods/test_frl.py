"""FRL: orders in bits, the vote, and a client's walk, written out."""

import math

import pytest
import torch

from commonweight.exchange.asks import Slope, Told, Train, drive
from commonweight.exchange.methods.frl import constants, on, ordered, orders, scores, vote
from commonweight.exchange.ranking import bits, inverse, is_order, length, packed, unpacked
from commonweight.exchange.registry import Reply
from tests.exchange import small

RECIPE = {"batch_size": 4, "clients": 3, "rounds": 4, "seed": 5}


@pytest.mark.parametrize(("n", "each"), [(1, 1), (2, 1), (3, 2), (8, 3), (9, 4), (300, 9)])
def test_an_order_takes_so_many_bits_a_place(n, each):
    order = torch.randperm(n, generator=torch.Generator().manual_seed(n))
    data = packed(order)
    assert bits(n) == each and data.dtype == torch.uint8 and len(data) == length(n) == math.ceil(n * each / 8)
    assert torch.equal(unpacked(data, n), order) and is_order(order)
    assert torch.equal(order[inverse(order)], torch.arange(n))


def test_what_is_no_order():
    assert not is_order(torch.tensor([0, 0, 2])) and not is_order(torch.tensor([0, 1, 3]))


def test_the_vote_is_the_order_of_the_mean_ranks():
    each = [torch.randn(40, generator=torch.Generator().manual_seed(i)) for i in range(5)]
    ranks = torch.stack([(s[:, None] > s[None]).sum(1) for s in each]).double().mean(0)
    got = vote([ordered(s) for s in each])
    assert (ranks[got].diff() >= 0).all() and is_order(got)
    assert torch.equal(vote([ordered(each[0])]), ordered(each[0]))
    a, b = torch.tensor([0, 1, 2, 3]), torch.tensor([3, 2, 1, 0])
    assert vote([a, b]).tolist() == [0, 1, 2, 3]  # all alike


def test_the_top_is_on_and_a_run_begins_with_the_base(bert):
    """The mask is the winners of the vote; with |scores| it would be both ends."""
    assert on(torch.tensor([3, 0, 2, 1]), 0.5).tolist() == [0.0, 1.0, 1.0, 0.0]
    p = small.prepared(bert, "frl", **RECIPE)
    begin = small.start(p)
    state = p.method.begin(p.setting, begin)
    assert all((v - begin[n]).abs().max() <= 1e-6 for n, v in p.method.pools(p.setting, state).items())
    n = next(n for n in p.setting.travels if n.endswith(".B"))
    c = constants(p.setting, n)
    assert torch.equal(c.abs(), torch.full_like(c, 0.2 / 2)) and abs(float(c.sign().mean())) < 0.5
    assert float(scores(p.setting, n).abs().max()) <= 1 / math.sqrt(p.setting.plan.pools[n].shape[-1])


def test_a_client_s_walk(bert):
    """Adam, decay and the cosine, on scores whose gradient passes the mask as if it were not there."""
    p = small.prepared(bert, "frl", **RECIPE)
    begin, round, steps = small.start(p), 2, 3
    state = p.method.begin(p.setting, begin)
    told = Told(round, 0, 9, p.method.tell(p.setting, state, round, 0), begin, {})
    given = [small.moved(begin, 20 + k, std=3.0) for k in range(steps)]
    asked = []

    def answer(ask):
        asked.append(ask)
        return Slope(given[ask.step], 1.0 + ask.step, steps)

    sent = drive(p.method.client(p.setting, told), answer)
    assert sent.loss == 2.0 and [a.step for a in asked] == [0, 1, 2]
    for n in p.setting.travels:
        first, c = scores(p.setting, n).double(), constants(p.setting, n).double()
        s, m, v = first.clone(), torch.zeros_like(first), torch.zeros_like(first)
        k = max(1, math.floor(0.5 * len(s) + 0.5))
        for t in range(steps):
            mask = torch.zeros_like(s)
            mask[s.topk(k).indices] += 1
            mask[first.topk(k).indices] -= 1
            assert (asked[t].pools[n].flatten() - begin[n].flatten() - c * mask).abs().max() <= 1e-6
            rate = 0.1 / math.sqrt(begin[n].shape[-1]) * 0.999**round * (1 + math.cos(math.pi * t / steps)) / 2
            g = given[t][n].flatten().double() * c
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
            s = s - rate * (m / (1 - 0.9 ** (t + 1))) / ((v / (1 - 0.999 ** (t + 1))).sqrt() + 1e-8)
        got = orders(p.setting, sent.tensors["order"])[n]
        assert (s[got].diff() >= -1e-6).all()


def test_scores_keep_their_values_and_a_wrong_answer_is_left_out(bert):
    p = small.prepared(bert, "frl", **RECIPE)
    state = p.method.begin(p.setting, small.start(p))
    good = state.tensors["order"].clone()
    after = p.method.gather(p.setting, state, 0, [Reply(0, 3, {"order": good})])
    assert torch.equal(after.tensors["order"], good)
    small.is_left_out(p, state, {"order": good}, {"order": torch.zeros_like(good)}, "wrong shape")


def test_heads_that_stay_with_a_client_are_trained(bert):
    p = small.prepared(bert, "frl", {"rank": 2}, private="*head*", **RECIPE)
    state, begin = p.method.begin(p.setting, small.start(p)), small.start(p)
    told = Told(0, 0, 9, p.method.tell(p.setting, state, 0, 0), begin, {})
    w, asked = small.work(p), []

    def answer(ask):
        asked.append(ask)
        return w.answer(0, [(0, ask)])[0]

    sent = drive(p.method.client(p.setting, told), answer)
    assert isinstance(asked[-1], Train) and set(sent.keep) == set(p.setting.private)
    assert all(not torch.equal(v, begin[n]) for n, v in sent.keep.items())
