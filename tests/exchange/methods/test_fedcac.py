"""FedCAC: masks, overlaps and both means, written out."""

import pytest
import torch

from commonweight.exchange.methods.fedcac import apart, joined, mask, overlaps, threshold
from commonweight.exchange.registry import Reply
from tests.exchange import small

TINY = {"adapter": "ia3", "beta": 10}


def replies(p, n, seed=0):
    begin = small.start(p)
    out = []
    for c in range(n):
        new = small.moved(begin, seed + c)
        masks = {k: mask(begin[k], v, 0.5) for k, v in new.items()}
        out.append(Reply(c, 3 + 4 * c, {**new, "critical": joined(masks, p.setting.travels)}))
    return out


def test_the_mask():
    """The largest |(new - old) new|; ties and zeros do not make it larger."""
    old, new = torch.tensor([1.0, 1.0, 0.0, 2.0, 5.0]), torch.tensor([2.0, 0.5, 0.5, 2.0, 5.1])
    assert mask(old, new, 0.4).tolist() == [True, False, False, False, True]  # 2, 0.25, 0.25, 0, 0.51
    assert int(mask(torch.zeros(8), torch.zeros(8), 0.5).sum()) == 4


def test_bits(bert):
    p = small.prepared(bert, "fedcac", {"rank": 2})
    masks = {n: torch.rand(q.shape) < 0.5 for n, q in p.setting.pools.items()}
    bits = joined(masks, p.setting.travels)
    assert len(bits) == -(-p.setting.count // 8) and small.same(apart(bits, p.setting), masks)
    assert p.method.nbytes(p.setting, 0, 0) == (4 * p.setting.count + len(bits), 4 * p.setting.count)


def test_overlaps_and_the_threshold():
    a, b, c = (torch.tensor(x, dtype=torch.bool) for x in ([1, 1, 0, 0], [1, 0, 1, 0], [0, 0, 1, 1]))
    o = overlaps([a, b, c])
    assert o.tolist() == [[1.0, 0.5, 0.0], [0.5, 1.0, 0.5], [0.0, 0.5, 1.0]]
    assert threshold(o, 0, 10) == pytest.approx(1 / 3 + 0.1 * (0.5 - 1 / 3))
    assert threshold(o, 9, 10) == pytest.approx(0.5) and threshold(o, 10, 10) > 0.5


@pytest.mark.parametrize("round", [0, 4, 30])
def test_the_two_means(bert, round):
    p = small.prepared(bert, "fedcac", TINY)
    begin, got = small.start(p), replies(p, 4)
    state = p.method.gather(p.setting, p.method.begin(p.setting, begin), round, got)
    masks = [apart(r.tensors["critical"], p.setting) for r in got]
    flat = [torch.cat([m[n].flatten() for n in p.setting.travels]) for m in masks]
    o = {
        (i, j): 1 - float((flat[i] ^ flat[j]).sum()) / (2 * float(flat[i].sum()))
        for i in range(4) for j in range(4) if i != j
    }  # fmt: skip
    middle = sum(o.values()) / len(o)
    least = middle + (round + 1) / 10 * (max(o.values()) - middle)
    w = [r.rows / sum(q.rows for q in got) for r in got]
    for i in range(4):
        alike = [i, *(j for j in range(4) if j != i and o[i, j] >= least)]
        assert round < 30 or alike == [i]
        told = p.method.tell(p.setting, state, round + 1, i)
        for n in p.setting.travels:
            common = sum(x * r.tensors[n] for x, r in zip(w, got))
            own = sum(got[j].tensors[n] for j in alike) / len(alike)
            want = torch.where(masks[i][n], own, common)
            assert (told[n] - want).abs().max() <= 1e-6
            assert (p.method.pools(p.setting, state)[n] - common).abs().max() <= 1e-6


def test_a_new_client_gets_what_all_have(bert):
    p = small.prepared(bert, "fedcac", TINY)
    state = p.method.gather(p.setting, p.method.begin(p.setting, small.start(p)), 0, replies(p, 2))
    assert small.same(p.method.tell(p.setting, state, 1, 2), p.method.pools(p.setting, state))
    alone = p.method.gather(p.setting, p.method.begin(p.setting, small.start(p)), 0, replies(p, 1))
    assert alone.seen == {"alike": 1.0}


@pytest.mark.parametrize("n", [3, 6, 7])
@pytest.mark.parametrize("equal", [0.1, 0.7, 1 / 3])
def test_equal_overlaps_are_alike(n, equal):
    """Whatever the last digit of their mean is."""
    o = torch.full((n, n), equal, dtype=torch.float64)
    assert all(float(v) >= threshold(o, t, 10) for v in o.flatten() for t in (0, 4, 9))
