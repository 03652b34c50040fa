"""Coded changes: bytes, error feedback and the choice of codecs, written out."""

import itertools

import pytest
import torch

from commonweight.core import CommonweightError
from commonweight.exchange import simulate
from commonweight.exchange.asks import NOTHING, Told, Train, Trained, drive
from commonweight.exchange.lgreco import choose
from commonweight.exchange.methods.coded import LEVELS, Coded, decode, encode, get, longest, read
from commonweight.exchange.registry import Reply
from tests.adapt import tiny
from tests.exchange import small

CODECS = ("int8", "int4", "bfloat16", "compeft:density=0.1", "l-greco")


def sent_of(p, state, change, keep=None):
    """What a client sends whose training ends at its beginning + change."""
    gen = p.method.client(p.setting, Told(0, 0, 5, p.method.tell(p.setting, state, 0, 0), small.start(p), keep or {}))
    ask = next(gen)
    assert isinstance(ask, Train)
    with pytest.raises(StopIteration) as end:
        gen.send(Trained({n: v + change[n] for n, v in ask.pools.items()}, 1, 0.5, {}))
    return end.value.value


def changes(p, seed=0):
    g = torch.Generator().manual_seed(seed)
    return {n: torch.randn(q.shape, generator=g) * (i + 1) for i, (n, q) in enumerate(p.setting.pools.items())}


@pytest.mark.parametrize("codec", CODECS)
def test_the_mean_of_what_arrives(bert, codec):
    p = small.prepared(bert, "coded", {"adapter": "ia3", "codec": codec})
    state = p.method.begin(p.setting, small.start(p))
    sent = [sent_of(p, state, changes(p, c)) for c in range(2)]
    replies = [Reply(c, 1 + 2 * c, s.tensors) for c, s in enumerate(sent)]
    new = p.method.gather(p.setting, state, 0, replies)
    one, other = (read(p.setting, s.tensors) for s in sent)
    for n, v in new.tensors.items():
        assert (v - (state.tensors[n] + 0.25 * one[n] + 0.75 * other[n])).abs().max() <= 1e-5


@pytest.mark.parametrize("codec", CODECS)
def test_nothing_is_lost_for_good(bert, codec):
    """Sum of what was sent + what is kept = sum of the changes, over rounds."""
    p = small.prepared(bert, "coded", {"adapter": "ia3", "codec": codec})
    state, keep = p.method.begin(p.setting, small.start(p)), {}
    total = {n: torch.zeros(q.shape) for n, q in p.setting.pools.items()}
    true = {n: v.clone() for n, v in total.items()}
    for round in range(4):
        change = changes(p, round)
        sent = sent_of(p, state, change, keep)
        keep = sent.keep
        for n, v in read(p.setting, sent.tensors).items():
            total[n] += v
            true[n] += change[n]
    for n, v in total.items():
        assert (v + keep[f"lost/{n}"] - true[n]).abs().max() <= 1e-4 * true[n].abs().max()
    plain = small.prepared(bert, "coded", {"adapter": "ia3", "codec": codec, "feedback": False})
    assert sent_of(plain, state, changes(p)).keep == {}


def test_bytes(bert):
    """int8: n and 2 for every 64 of a pool; int4: half of n; compeft: fewer; exactly, pool by pool."""
    for codec, each in (("int8", lambda n: n + 2 * -(-n // 64)), ("int4", lambda n: -(-n // 2) + 2 * -(-n // 64))):
        p = small.prepared(bert, "coded", {"rank": 2, "codec": codec})
        want = sum(each(q.numel) for q in p.setting.pools.values())
        assert p.method.nbytes(p.setting, 0, 0) == (want, 4 * p.setting.count)
        assert len(sent_of(p, p.method.begin(p.setting, small.start(p)), changes(p)).tensors["bytes"]) == want
    q = small.prepared(bert, "coded", {"rank": 2, "codec": "compeft:density=0.05"})
    sent = sent_of(q, q.method.begin(q.setting, small.start(q)), changes(q)).tensors
    assert sum(v.numel() * v.itemsize for v in sent.values()) < 0.8 * q.setting.count / 8 * 4
    assert sent["lengths"].sum() == len(sent["bytes"])


@pytest.mark.parametrize("codec", [*LEVELS, "bfloat16", "compeft:density=1.0"])
@pytest.mark.parametrize("n", [1, 7, 64, 65, 1000])
def test_no_coding_is_longer_than_its_bound(codec, n):
    for value in (torch.randn(n), torch.zeros(n), torch.ones(n), torch.eye(1, n)[0]):
        stored = encode(get(codec), value)
        assert len(stored) <= longest(codec, n)
        assert decode(codec, stored, (n,)).shape == (n,)


@pytest.mark.parametrize("codec", ["int8", "compeft:density=0.1", "l-greco"])
def test_what_does_not_decode_is_left_out(bert, codec):
    p = small.prepared(bert, "coded", {"adapter": "ia3", "codec": codec})
    state = p.method.begin(p.setting, small.start(p))
    good, bad = (sent_of(p, state, changes(p, c)).tensors for c in range(2))
    if codec == "int8":
        bad = {"bytes": torch.full_like(bad["bytes"], 255)}  # scales of NaN
    elif codec == "l-greco":
        bad = {**bad, "codecs": bad["codecs"] + 100}
    else:
        bad = {**bad, "lengths": bad["lengths"] + 1}
    reason = "not finite" if codec == "int8" else "wrong shape"
    small.is_left_out(p, state, good, bad, reason)


def test_a_change_too_large_for_the_codec_is_not_sent(bert):
    """Twice the largest float32 is infinite. What was lost before stays for the next round."""
    p = small.prepared(bert, "coded", {"adapter": "ia3", "codec": "int8"})
    state = p.method.begin(p.setting, small.start(p))
    far = {n: torch.full_like(v, torch.finfo(torch.float32).max) for n, v in state.tensors.items()}
    told = Told(1, 0, 3, state.tensors, small.start(p), {f"lost/{n}": v for n, v in far.items()})
    assert drive(p.method.client(p.setting, told), lambda _: Trained(far, 1, 0.5, {})) == NOTHING


@pytest.mark.parametrize("codec", ["onebit", "ordered"])
def test_a_codec_without_a_bound_on_its_bytes(codec):
    with pytest.raises(CommonweightError, match=f"codec={codec} is none of changes; wanted int8, int4"):
        Coded(codec=codec)


@pytest.mark.parametrize("seed", range(6))
def test_the_choice_is_that_of_brute_force(seed):
    """All choices of 4 pools and 4 codecs, errors on the grid."""
    g = torch.Generator().manual_seed(seed)
    sizes = torch.randint(1, 100, (4, 4), generator=g).tolist()
    errors = torch.randint(0, 600, (4, 4), generator=g).double().tolist()
    most = 1000.0
    every = [
        (sum(sizes[i][c] for i, c in enumerate(cs)), cs)
        for cs in itertools.product(range(4), repeat=4) if sum(errors[i][c] for i, c in enumerate(cs)) <= most
    ]  # fmt: skip
    got = choose(sizes, errors, most)
    if not every:
        assert got is None
        return
    assert got is not None and sum(errors[i][c] for i, c in enumerate(got)) <= most
    assert sum(sizes[i][c] for i, c in enumerate(got)) == min(every)[0]
    assert choose(sizes, [[5.0]] * 4, 1.0) is None


def test_of_one_error_it_takes_fewer_bytes_than_int4(bert):
    """Pools of very different size of change: the small ones are hardly sent."""
    p, q = (small.prepared(bert, "coded", {"rank": 4, "codec": c}) for c in ("l-greco", "int4"))
    change = {n: v * (1.0 if i % 2 else 1e-3) for i, (n, v) in enumerate(changes(p).items())}
    state = p.method.begin(p.setting, small.start(p))
    mine, theirs = (sent_of(x, state, change).tensors for x in (p, q))
    assert sum(v.numel() * v.itemsize for v in mine.values()) < 0.8 * theirs["bytes"].numel()
    errors = [
        sum(float((v - change[n]).square().sum()) for n, v in read(x.setting, s).items())
        for x, s in ((p, mine), (q, theirs))
    ]
    assert errors[0] <= 1.02 * errors[1]


def test_a_codec_that_is_none(bert):
    with pytest.raises(ValueError, match="codec"):
        small.prepared(bert, "coded", {"codec": "int3"})


@pytest.mark.parametrize(("down", "error"), [("int8", 0.5 / 127), ("bfloat16", 2**-8)])
def test_pools_that_come_down_coded(bert, down, error):
    """A client begins near the server's pools; what it does not change leaves them as they are, to the bit."""
    p = small.prepared(bert, "coded", {"rank": 2, "codec": "int8", "down": down})
    state = p.method.begin(p.setting, small.moved(small.start(p)))
    told = Told(0, 0, 5, p.method.tell(p.setting, state, 0, 0), small.start(p), {})
    gen = p.method.client(p.setting, told)
    ask = next(gen)
    for n, v in state.tensors.items():
        assert 0 < (ask.pools[n] - v).abs().max() <= 1.02 * error * v.abs().max() + 1e-3 * v.abs().max()
    with pytest.raises(StopIteration) as end:
        gen.send(Trained(dict(ask.pools), 1, 0.5, {}))
    after = p.method.gather(p.setting, state, 0, [Reply(0, 5, end.value.value.tensors)])
    assert small.same(after.tensors, state.tensors)
    up, down_bytes = p.method.nbytes(p.setting, 0, 0)
    assert down_bytes == len(told.tensors["bytes"]) == sum(longest(down, q.numel) for q in p.setting.pools.values())
    assert down_bytes == up or down == "bfloat16"


def test_a_run_with_eight_bits_both_ways(bert):
    how = {"clients": 3, "rounds": 3, "batch_size": 4, "lr": 1e-2, "method": "coded"}
    coded, plain = (
        simulate(small.prepared_host(bert), tiny.rows(30), options={"rank": 2, "codec": "int8", "down": d}, **how)
        for d in ("int8", "float32")
    )
    assert coded.down < 0.45 * plain.down and coded.up == plain.up
    assert abs(coded.curve[-1]["train_loss"] - plain.curve[-1]["train_loss"]) < 0.02
