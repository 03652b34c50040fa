"""Sub-models: each number's mean is over the clients that have it."""

import pytest
import torch

from commonweight.exchange.methods.submodel import apart, flat, places
from commonweight.exchange.registry import Reply
from tests.exchange import small


@pytest.mark.parametrize("clients", [1, 5, 12])
def test_every_number_is_covered(bert, clients):
    """n clients with a share of 0.4 cover each number at least floor(0.4 n) times, in another way each round."""
    p = small.prepared(bert, "submodel")
    have = torch.zeros(p.setting.count)
    for c in range(clients):
        have[places(p.setting, 3, c)] += 1
    assert int(have.min()) >= int(0.4 * clients) - (0.4 * clients % 1 == 0 and clients > 1)
    assert not torch.equal(places(p.setting, 3, 0), places(p.setting, 4, 0))


def replies(p, clients, round=2):
    k = len(places(p.setting, round, 0))
    return [Reply(c, c + 1, {"numbers": torch.randn(k)}) for c in range(clients)]


@pytest.mark.parametrize("coverage", [1, 2])
def test_the_mean_number_by_number(bert, coverage):
    p = small.prepared(bert, "submodel", {"rank": 2, "share": 0.4, "coverage": coverage})
    state = p.method.begin(p.setting, small.start(p))
    each = replies(p, 4)
    after = flat(p.method.gather(p.setting, state, 2, each).tensors, p.setting.travels)
    before = flat(state.tensors, p.setting.travels)
    found = [{int(j): float(v) for j, v in zip(places(p.setting, 2, r.client), r.tensors["numbers"])} for r in each]
    for j in range(0, p.setting.count, 97):
        mine = [(r.rows, f[j]) for r, f in zip(each, found) if j in f]
        wanted = float(before[j])
        if len(mine) >= coverage:
            wanted = sum(w * v for w, v in mine) / sum(w for w, _ in mine)
        assert float(after[j]) == pytest.approx(wanted, abs=1e-5)


def test_with_all_numbers_it_is_fedavg(bert):
    """Masks of ones: the same tables in another form."""
    p, q = small.prepared(bert, "submodel", {"rank": 2, "share": 1.0}), small.prepared(bert, "fedavg", {"rank": 2})
    state = p.method.begin(p.setting, small.start(p))
    each = replies(p, 3)
    whole = [r._replace(tensors=apart(r.tensors["numbers"], p.setting)) for r in each]
    got = p.method.gather(p.setting, state, 2, each).tensors
    want = q.method.gather(q.setting, state, 2, whole).tensors
    assert all((got[n] - want[n]).abs().max() <= 1e-6 for n in want)


def test_a_client_has_zeros_elsewhere_and_sends_what_it_has(bert):
    p = small.prepared(bert, "submodel", lr=1e-2)
    from commonweight.exchange.asks import Told, Trained

    begin = small.start(p)
    state = p.method.begin(p.setting, begin)
    down = p.method.tell(p.setting, state, 1, 2)
    gen = p.method.client(p.setting, Told(1, 2, 5, down, begin, {}))
    ask = next(gen)
    at = places(p.setting, 1, 2)
    given, mask = flat(ask.pools, p.setting.travels), flat(ask.mask, p.setting.travels)
    assert mask.nonzero().squeeze(1).tolist() == at.tolist()
    assert torch.equal(given[at], down["numbers"]) and not given[mask == 0].any()
    (done,) = small.work(p).answer(1, [(2, ask)])
    after = flat(done.pools, p.setting.travels)
    assert not after[mask == 0].any() and not torch.equal(after[at], given[at])
    with pytest.raises(StopIteration) as end:
        gen.send(Trained(done.pools, 1, 0.5, {}))
    assert torch.equal(end.value.value.tensors["numbers"], after[at])
