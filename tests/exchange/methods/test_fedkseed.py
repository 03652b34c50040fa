"""FedKSeed and FedKSeed-Pro: walk, sums, rebuilding and chances, written out."""

import math

import pytest
import torch

from commonweight.core.directions import direction
from commonweight.exchange import rounds
from commonweight.exchange.asks import Sent, Told, drive
from commonweight.exchange.methods.fedkseed import candidate, walked
from commonweight.exchange.methods.fedkseed_pro import chances, drawn
from commonweight.exchange.registry import Reply, State
from tests.exchange import small
from tests.exchange.methods.test_mezo import quadratic

TINY = {"adapter": "ia3", "seeds": 32, "steps": 5, "rate": 0.01}


def answer_of(p, state, target, round=0, client=0):
    told = Told(round, client, 5, p.method.tell(p.setting, state, round, client), small.start(p), {})
    asked = []

    def answer(ask):
        asked.append({n: v.clone() for n, v in ask.pools.items()})
        return quadratic(target)(ask)

    return drive(p.method.client(p.setting, told), answer), asked


@pytest.mark.parametrize("name", ["fedkseed", "fedkseed-pro"])
def test_replay_is_the_walk(bert, name):
    """400 steps on a real walk: w0 and the sums give where the client stood, to 1e-5."""
    p = small.prepared(bert, name, {**TINY, "seeds": 64, "steps": 400, "rate": 1e-3})
    start = small.start(p)
    target = small.moved(start, 1)
    state = p.method.begin(p.setting, start)
    sent, asked = answer_of(p, state, target)
    after = p.method.pools(p.setting, p.method.gather(p.setting, state, 0, [Reply(0, 5, sent.tensors)]))
    assert len(asked) == 800
    along = drawn(p.setting, state, 0, 0) if name.endswith("pro") else walked(p.setting, state, 0, 0)
    for n in p.setting.travels:
        last = asked[-1][n] - 1e-3 * sent.tensors["slopes"][-1] * direction(
            candidate(p.setting, int(along[-1])), n, tuple(start[n].shape)
        )
        assert (after[n] - start[n]).abs().max() > 1e-3
        assert (after[n] - last).abs().max() <= 1e-5, n


def test_the_sums(bert):
    """sums_j + sum of shares times slopes; w0 - rate * sum of sums_j z_j."""
    p = small.prepared(bert, "fedkseed", TINY)
    start = small.start(p)
    state = p.method.begin(p.setting, start)
    state.tensors["sums"][3] = 0.25
    replies = [Reply(c, 1 + 2 * c, {"slopes": torch.randn(5)}) for c in (0, 1)]
    new = p.method.gather(p.setting, state, 4, replies)
    sums = [0.0] * 32
    sums[3] = 0.25
    for r, w in zip(replies, (0.25, 0.75)):
        for j, g in zip(walked(p.setting, state, 4, r.client).tolist(), r.tensors["slopes"].tolist()):
            sums[j] += w * g
    assert new.tensors["sums"].tolist() == pytest.approx(sums, abs=1e-6)
    for n, v in p.method.pools(p.setting, new).items():
        want = start[n] - 0.01 * sum(
            s * direction(candidate(p.setting, j), n, tuple(v.shape)) for j, s in enumerate(sums)
        )
        assert (v - want).abs().max() <= 1e-6


def test_the_next_client_begins_where_the_server_is(bert):
    p = small.prepared(bert, "fedkseed", {**TINY, "rate": 1e-3})
    target = small.moved(small.start(p), 1)
    state = p.method.begin(p.setting, small.start(p))
    for round in range(3):
        replies = [Reply(c, 5, answer_of(p, state, target, round, c)[0].tensors) for c in range(2)]
        state = p.method.gather(p.setting, state, round, replies)
    _, asked = answer_of(p, state, target, 3, 1)
    server = p.method.pools(p.setting, state)
    assert small.same({n: asked[0][n] for n in server}, server)
    assert sum((v - target[n]).square().sum() for n, v in server.items()) < sum(
        (small.start(p)[n] - target[n]).square().sum() for n in target
    )


@pytest.mark.parametrize(("name", "up", "down"), [("fedkseed", 800, 16384), ("fedkseed-pro", 800, 8592)])
def test_under_18_kilobytes(bert, name, up, down):
    """A client's round with the defaults, both directions, and frames: K = 4096 and 200 steps, however large the
    model is."""
    p = small.prepared(bert, name, {"rank": 2})
    state = p.method.begin(p.setting, small.start(p))
    assert p.method.nbytes(p.setting, 0, 0) == (up, down)
    told = Told(0, 0, 5, p.method.tell(p.setting, state, 0, 0), small.start(p), {})

    data = [
        rounds.down(p.method, p.setting, state, 0),
        rounds.up(p.method, p.setting, told, Sent({"slopes": torch.ones(200)}, {})),
    ]
    assert sum(map(len, data)) < 18_000


def test_directions_of_clients_and_rounds(bert):
    p = small.prepared(bert, "fedkseed", {**TINY, "steps": 50})
    found = [walked(p.setting, State({}), r, c).tolist() for r in range(2) for c in range(2)]
    assert len({tuple(f) for f in found}) == 4 and {j for f in found for j in f} <= set(range(32))


def test_chances(bert):
    """softmax(minmax(mean |g|)): between them at most e; before anything is known, all alike."""
    p = small.prepared(bert, "fedkseed-pro", {**TINY, "seeds": 4})
    state = p.method.begin(p.setting, small.start(p))
    assert chances(state).tolist() == [0.25] * 4
    state.tensors["size"][:3] = torch.tensor([2.0, 9.0, 1.0])
    state.tensors["times"][:3] = torch.tensor([1.0, 3.0, 1.0])  # means 2, 3, 1 and, unseen, 2
    e = [math.exp(x) for x in (0.5, 1.0, 0.0, 0.5)]
    assert chances(state).tolist() == pytest.approx([x / sum(e) for x in e])
    assert float(chances(state).max() / chances(state).min()) == pytest.approx(math.e)
    state.tensors["size"][:] = state.tensors["times"][:] = 1.0
    assert chances(state).tolist() == [0.25] * 4


def test_steep_directions_are_drawn_more_often(bert):
    p = small.prepared(bert, "fedkseed-pro", {**TINY, "seeds": 4, "steps": 8000})
    state = p.method.begin(p.setting, small.start(p))
    state.tensors["size"][:] = torch.tensor([0.0, 1.0, 2.0, 3.0])
    state.tensors["times"][:] = 1.0
    share = torch.bincount(drawn(p.setting, state, 0, 0), minlength=4) / 8000
    assert (share - chances(state)).abs().max() < 0.02


def test_sizes_and_counts(bert):
    p = small.prepared(bert, "fedkseed-pro", TINY)
    state = p.method.begin(p.setting, small.start(p))
    slopes = torch.tensor([1.0, -2.0, 3.0, -4.0, 5.0])
    new = p.method.gather(p.setting, state, 0, [Reply(2, 5, {"slopes": slopes})])
    assert float(new.tensors["size"].sum()) == 15 and float(new.tensors["times"].sum()) == 5
    j = int(drawn(p.setting, state, 0, 2)[0])
    assert new.tensors["times"][j] > 0
