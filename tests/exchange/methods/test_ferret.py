"""Ferret: groups, projections and their mean, written out."""

import pytest
import torch

from commonweight.core.directions import direction
from commonweight.exchange.asks import Told, Train, Trained
from commonweight.exchange.methods.ferret import candidate, cut, drawn, groups
from commonweight.exchange.registry import Reply
from tests.exchange import small


def ended(gen, value):
    with pytest.raises(StopIteration) as end:
        gen.send(value)
    return end.value.value


def sent_of(p, state, change, round=0, client=0):
    """What a client sends whose training ends at its beginning - change."""
    gen = p.method.client(
        p.setting, Told(round, client, 5, p.method.tell(p.setting, state, round, client), small.start(p), {})
    )
    ask = next(gen)
    assert isinstance(ask, Train)
    after = {n: v - change[n] if n in change else v for n, v in ask.pools.items()}
    return ended(gen, Trained(after, 1, 0.5, {})), ask.pools


def changes(p, seed=0):
    g = torch.Generator().manual_seed(seed)
    return {n: torch.randn(p.setting.pools[n].shape, generator=g) for n in p.setting.travels}


def test_groups(bert):
    """Consecutive pools until 0.9 of the median's numbers; the last may be small."""
    p = small.prepared(bert, "ferret")
    sizes = {n: q.numel for n, q in p.setting.pools.items()}
    enough = 0.9 * float(torch.tensor(sorted(sizes.values())).double().quantile(0.5))
    found = groups(p.setting)
    assert [n for g in found for n in g] == list(p.setting.travels)
    for g in found[:-1]:
        assert sum(sizes[n] for n in g) >= enough > sum(sizes[n] for n in g[:-1])


@pytest.mark.parametrize(("compat", "share"), [("", 1.0), ("official", 1 / 3)])
def test_the_estimate_is_the_change_in_the_mean(bert, compat, share):
    """sum of c z over very many directions; the published directions give a third, and the rate of 10 is 3.3."""
    rate = {"server_rate": 1.0}
    p = small.prepared(bert, "ferret", {"adapter": "bitfit", "seeds": 400, "compat": compat, **rate})
    state = p.method.begin(p.setting, small.start(p))
    change = changes(p)
    top = max(change, key=lambda n: change[n].norm())
    sent, before = sent_of(p, state, change)
    new = p.method.gather(p.setting, state, 0, [Reply(0, 5, sent.tensors)])
    found = before[top] - p.method.pools(p.setting, new)[top]
    along = float((found * change[top]).sum() / change[top].square().sum())
    assert along == pytest.approx(share, rel=0.2)


def test_scalars(bert):
    p = small.prepared(bert, "ferret", {"rank": 2, "seeds": 6})
    state = p.method.begin(p.setting, small.start(p))
    change = changes(p)
    names = groups(p.setting)[1]
    for n in change:
        change[n] *= 3.0 if n in names else 1.0
    sent, before = sent_of(p, state, change, 2, 1)
    counts = sent.tensors["counts"].tolist()
    norms = [sum(float(change[n].square().sum()) for n in g) ** 0.5 for g in groups(p.setting)]
    assert counts == [max(int(norm / max(norms) * 6), 2) for norm in norms] and max(counts) == 6 > min(counts)
    scalars = dict(enumerate(sent.tensors["scalars"].split(counts)))
    for g, some in enumerate(groups(p.setting)):
        for j, c in zip(drawn(p.setting, 2, 1, g, counts[g]), scalars[g].tolist()):
            z = {n: direction(candidate(p.setting, g, j), n, tuple(change[n].shape)) for n in some}
            assert c == pytest.approx(
                sum(float((change[n] * z[n]).sum()) for n in some) / counts[g], rel=1e-3, abs=1e-3
            )
    other = {**sent.tensors, "scalars": -sent.tensors["scalars"]}
    new = p.method.gather(p.setting, state, 2, [Reply(1, 3, sent.tensors)])
    want = {n: v.clone() for n, v in before.items()}
    for g, some in enumerate(groups(p.setting)):
        for j, c in zip(drawn(p.setting, 2, 1, g, counts[g]), scalars[g].tolist()):
            for n in some:
                want[n] -= c * direction(candidate(p.setting, g, j), n, tuple(want[n].shape))
    for n, v in p.method.pools(p.setting, new).items():
        assert (v - want[n]).abs().max() <= 1e-4
    both = p.method.gather(p.setting, new, 2, [Reply(1, 3, other)])
    assert both.tensors["sums"].abs().max() <= 1e-6


def test_bytes_are_those_in_use(bert):
    """2 a group and 4 a scalar, not the dense tensor of K * groups."""
    p = small.prepared(bert, "ferret", {"rank": 2, "seeds": 50})
    change = {n: v * (20.0 if i == 0 else 0.1) for i, (n, v) in enumerate(changes(p).items())}
    sent, _ = sent_of(p, p.method.begin(p.setting, small.start(p)), change)
    n = len(groups(p.setting))
    real = sum(v.numel() * v.itemsize for v in sent.tensors.values())
    assert real == 2 * n + 4 * int(sent.tensors["counts"].sum()) < 0.4 * 4 * 50 * n
    assert p.method.nbytes(p.setting, 0, 0) == (2 * n + 4 * 50 * n, 4 * 50 * n)


def test_the_published_directions():
    v = cut(3, "a", (20_000,), 400).double()
    assert v.abs().max() <= 1 / 20 + 1e-6 and float(v.square().mean()) * 400 == pytest.approx(1 / 3, rel=0.03)


def test_counts_that_do_not_fit_are_left_out(bert):
    p = small.prepared(bert, "ferret")
    state = p.method.begin(p.setting, small.start(p))
    good, _ = sent_of(p, state, changes(p))
    bad = {**good.tensors, "counts": good.tensors["counts"] + 1}
    small.is_left_out(p, state, good.tensors, bad, "wrong shape")
