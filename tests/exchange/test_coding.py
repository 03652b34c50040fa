"""Codecs around every method: what arrives, what is lost and sent later, what the server makes of it."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch

from commonweight.core import CommonweightError
from commonweight.exchange import simulate
from commonweight.exchange.asks import NOTHING, Told, Trained, drive
from commonweight.exchange.codes import read, write
from commonweight.exchange.coding import LOST, around, floats, of_run
from commonweight.exchange.local import Rounds
from commonweight.exchange.methods import get
from commonweight.exchange.registry import METHODS, Coding, Reply
from commonweight.exchange.rounds import Gathering, facts, heard, told, up
from commonweight.exchange.rounds import down as sent_down
from tests.adapt import tiny
from tests.exchange import small

FLOATS = sorted(n for n, m in METHODS.all.items() if not m.uncoded(m.config(), "up") and m.coding is None)
BROADCAST = [n for n in FLOATS if METHODS.all[n].broadcast]
ERRORS = {"int8": 0.01, "int4": 0.2, "bfloat16": 0.005, "compeft:density=0.1": 1.0, "l-greco": 0.6}  # of the norm
MORE = {"diloco": {"rank": 2, "steps": 4, "fragments": 2}, "merged": {"adapter": "ia3"}, "fedcac": {"adapter": "ia3"}}


@cache
def opened(model, name):
    """One for all tests: they read it alone."""
    return small.prepared(model, name, MORE.get(name, small.SMALL[name]), rounds=9)


def prepared(model, name, codec=None, codec_down=None, codec_feedback="clients"):
    """As `ready` makes it of these options."""
    p = opened(model, name)
    coding = of_run(p.method, p.setting.config, codec, codec_down, codec_feedback)
    return replace(p, method=around(p.method, coding), setting=replace(p.setting, coding=coding))


def plain(p):
    """The method without its codecs."""
    return get(p.method.name)


def change(p, seed):
    """What a client's training changes. Pools differ in size."""
    g = torch.Generator().manual_seed(seed)
    names = (*p.setting.travels, *p.setting.private)
    return {n: torch.randn(p.setting.plan.pools[n].shape, generator=g) * (1 + i % 3) for i, n in enumerate(names)}


def answer(method, p, state, seed, keep=None, round=0, client=0):
    """What a client sends whose training ends at its beginning + change(seed)."""
    data = sent_down(method, p.setting, state, round, client)
    got = told(method, p.setting, data, round, client, 5, small.start(p), keep or {})
    moved = change(p, seed)
    return drive(
        method.client(p.setting, got),
        lambda ask: Trained({n: v + moved[n] for n, v in ask.pools.items()}, 1, 0.5, {}),
    )


def arrives(p, state, sent, round=0, client=0):
    """An answer's tensors as the method gets them."""
    layer = p.method.gather.__self__
    own = type(state)({n: v for n, v in state.tensors.items() if not n.startswith("codec/")}, state.facts)
    return layer.opened(p.setting, own, round, [Reply(client, 5, sent.tensors)])[0].tensors


@pytest.mark.parametrize("codec", ERRORS)
@pytest.mark.parametrize("name", FLOATS)
def test_what_arrives(bert, name, codec):
    """Near what an uncoded client sends, in fewer bytes; what is not of floats to the bit."""
    p = prepared(bert, name, codec=codec)
    state, bare = p.method.begin(p.setting, small.start(p)), plain(p)
    sent, want = answer(p.method, p, state, 1), answer(bare, p, state, 1)
    got = arrives(p, state, sent)
    assert got.keys() == want.tensors.keys()
    mine = floats(bare.up(p.setting, 0, 0))
    base = bare.tell(p.setting, state, 0, 0) if bare.sends == "values" else {}
    for n, v in want.tensors.items():
        if n not in mine:
            assert torch.equal(got[n], v)
            continue
        moved = v - base[n] if n in base else v
        assert (got[n] - v).norm() <= ERRORS[codec] * moved.norm() + 1e-5 * v.norm()
    size = sum(v.nbytes for v in sent.tensors.values())
    assert size < 0.6 * sum(v.nbytes for v in want.tensors.values()) and size <= p.method.nbytes(p.setting, 0, 0)[0]


@pytest.mark.parametrize("codec", ["int4", "compeft:density=0.1"])
@pytest.mark.parametrize("name", FLOATS)
def test_nothing_is_lost_for_good(bert, name, codec):
    """Of every number: the sum of what arrived + what is kept = the sum of what was to be sent, so that the mean of
    many rounds comes to the uncoded one. Without feedback nothing is kept."""
    p = prepared(bert, name, codec=codec)
    state, bare = p.method.begin(p.setting, small.start(p)), plain(p)
    keep, total, true = {}, {}, {}
    for round in range(4):
        sent = answer(p.method, p, state, round, keep, round)
        want = answer(bare, p, state, round, {n: v for n, v in keep.items() if not n.startswith(LOST)}, round)
        got, keep = arrives(p, state, sent, round), sent.keep
        for n in floats(bare.up(p.setting, round, 0)):
            where = bare.places(p.setting, round, 0)[n] if bare.places else None
            for sums, v in ((total, got[n]), (true, want.tensors[n])):
                v = v if where is None else torch.zeros(where[1]).index_copy(0, where[0], v)
                sums[n] = sums.get(n, 0) + v
    for n, v in total.items():
        assert (v + keep[f"{LOST}{n}"] - true[n]).abs().max() <= 1e-4 * true[n].abs().max()
    without = prepared(bert, name, codec=codec, codec_feedback="none")
    assert not [n for n in answer(without.method, without, state, 0).keep if n.startswith(LOST)]


@pytest.mark.parametrize("density", [0.05, 0.2])
def test_what_compeft_lost_does_not_grow(density):
    """Of changes that are all of one size, where a scale that keeps the norm would lose more each round."""
    codec, ones, lost, size = f"compeft:density={density}", torch.ones(100), torch.zeros(100), []
    for _ in range(120):
        lost = lost + ones
        lost = lost - read(codec, {"a": (100,)}, write(codec, {"a": lost}))["a"]
        size.append(float(lost.norm() / ones.norm()))
    assert max(size[60:]) <= 1.05 * max(size[:60]) <= 1.05 / density


@pytest.mark.parametrize("name", FLOATS)
def test_the_aggregate_under_int8(bert, name):
    """Within the largest step of eight bits of the uncoded one; where means are not linear, within a few."""
    p = prepared(bert, name, codec="int8")
    state, bare = p.method.begin(p.setting, small.start(p)), plain(p)
    found = {}
    for m in (p.method, bare):
        each = [Reply(c, 4 + c, answer(m, p, state, c, client=c).tensors) for c in range(3)]
        found[m] = bare.pools(p.setting, m.gather(p.setting, state, 0, each))
    most = max(float(v.abs().max()) for c in range(3) for v in change(p, c).values())
    steps = {"flag": 3, "merged": 3, "diloco": 0.7 * 1.9}.get(name, 1)
    for n, v in found[bare].items():
        assert (found[p.method][n] - v).abs().max() <= steps * 1.02 * most / 254


@pytest.mark.parametrize("codec", ["int8", "int4", "bfloat16"])
@pytest.mark.parametrize("name", FLOATS)
def test_what_comes_down_coded(bert, name, codec):
    """A client that changes nothing leaves the server's numbers as they are; it begins near them."""
    p = prepared(bert, name, codec="int8", codec_down=codec)
    bare, round = plain(p), 1
    state = bare.begin(p.setting, small.moved(small.start(p)))
    data = sent_down(p.method, p.setting, state, round, 0)
    got = told(p.method, p.setting, data, round, 0, 5, small.start(p), {})
    want = bare.tell(p.setting, state, round, 0)
    came, _ = p.method.gather.__self__.came(p.setting, got)
    assert len(data) < 0.55 * 4 * sum(v.numel() for v in want.values()) + 900
    for n, v in want.items():
        assert 0 < (came[n] - v).norm() <= ERRORS[codec] * v.norm()
    if bare.sends == "values":
        sent = drive(p.method.client(p.setting, got), lambda ask: Trained(dict(ask.pools), 1, 0.5, {}))
        back = arrives(p, state, sent, round)
        assert all((back[n] - v).abs().max() <= 1e-6 for n, v in want.items())


@pytest.mark.parametrize(
    ("name", "codec"),
    [*((n, c) for n in BROADCAST for c in ("int4", "compeft:density=0.2")), ("fed-sb", "int8"), ("flag", "l-greco")],
)
def test_the_server_sends_what_its_codec_lost(bert, name, codec):
    """Both sides have the same copy, to the bit, whatever a client missed; and it comes to the server's numbers."""
    p = prepared(bert, name, codec="int8", codec_down=codec, codec_feedback="both")
    m, bare = p.method, plain(p)
    layer = m.gather.__self__
    state = m.begin(p.setting, small.start(p))
    target = small.moved({n: small.start(p)[n] for n in p.setting.travels}, 3)
    state = state._replace(tensors={**state.tensors, **target})  # where the server would have all be
    keeps, behind = {0: {}, 1: {}, 2: {}}, []
    for round in range(8):
        here = [0] if round in (1, 2) else [0, 1] if round < 7 else [0, 1, 2]
        for c in here:
            data = sent_down(m, p.setting, state, round, c)
            assert len(data) <= 4 * p.setting.count + 1300
            got = told(m, p.setting, data, round, c, 5, small.start(p), keeps[c])
            came, keep = layer.came(p.setting, got)
            assert all(torch.equal(came[n], state.tensors[f"codec/copy/{n}"]) for n in bare.down(p.setting, round, 0))
            keeps[c] = keep
        assert all(torch.equal(keep[f"codec/copy/{n}"], state.tensors[f"codec/copy/{n}"]) for n in p.setting.travels)
        gap = sum(float((state.tensors[n] - state.tensors[f"codec/copy/{n}"]).square().sum()) for n in target)
        behind.append(gap**0.5)
        counted = [c for c in here if (c, round) != (0, 3)]  # the answer of client 0 in round 3 did not arrive
        state = layer.idle(p.setting, state, round)
        about = state.facts["codec"]
        state.facts["codec"] = {**about, "has": {**about["has"], **{str(c): round for c in counted}}}
    assert behind[-1] <= (0.35 if codec.startswith("compeft") else 0.02) * behind[0]
    assert len(state.tensors["codec/log"]) <= 4 * p.setting.count


def test_a_client_that_was_long_away_is_sent_the_copy(bert):
    p = small.prepared(bert, "fed-sb", {"rank": 2}, codec_down="int8", codec_feedback="both", rounds=20)
    state = p.method.begin(p.setting, small.start(p))
    state = state._replace(tensors={**state.tensors, **small.moved(small.start(p), 3)})
    for round in range(9):
        state = p.method.idle(p.setting, state, round)
    got = heard(p.method, p.setting, sent_down(p.method, p.setting, state, 9, 1), 9, 1)
    assert int(got["codec/begins"][0]) == -1 and len(got["codec/log"]) == 4 * p.setting.count
    came, _ = p.method.gather.__self__.came(p.setting, Told(9, 1, 5, got, small.start(p), {}))
    assert all(torch.equal(v, state.tensors[f"codec/copy/{n}"]) for n, v in came.items())
    state.facts["codec"]["has"]["1"] = 8
    got = heard(p.method, p.setting, sent_down(p.method, p.setting, state, 9, 1), 9, 1)
    with pytest.raises(CommonweightError, match="changed from round 9 on and has heard round -1; what it"):
        p.method.gather.__self__.came(p.setting, Told(9, 1, 5, got, small.start(p), {}))


@pytest.mark.parametrize("codec", ["int8", "compeft:density=0.1", "l-greco"])
def test_what_does_not_decode_is_left_out(bert, codec):
    p = small.prepared(bert, "median", {"adapter": "ia3"}, codec=codec)
    state = p.method.begin(p.setting, small.start(p))
    good, bad = (answer(p.method, p, state, c, client=c).tensors for c in range(2))
    bad = {"coded": torch.full_like(bad["coded"], 255)}  # scales of NaN, lengths below zero
    small.is_left_out(p, state, good, bad, "not finite" if codec == "int8" else "wrong shape")


def test_a_change_too_large_for_the_codec_is_not_sent(bert):
    """Twice the largest float32 is infinite. What was lost before stays for the next round."""
    p = small.prepared(bert, "flag", {"adapter": "ia3"}, codec="int8")
    state = p.method.begin(p.setting, small.start(p))
    far = {n: torch.full_like(v, torch.finfo(torch.float32).max) for n, v in state.tensors.items()}
    about = Told(1, 0, 3, state.tensors, small.start(p), {f"{LOST}{n}": v for n, v in far.items()})
    assert drive(p.method.client(p.setting, about), lambda _: Trained(far, 1, 0.5, {})) == NOTHING


def test_numbers_too_large_to_add_do_not_end_a_run(bert):
    """An answer that decodes, and whose sum with the server's numbers would be infinite: it is refused by name."""
    p = small.prepared(bert, "fedavg", {"adapter": "ia3"}, codec="bfloat16", codec_down="int8", codec_feedback="both")
    state = p.method.begin(p.setting, small.start(p))
    inbox, most = Gathering(p.method, p.setting, 0, {0, 1}), torch.finfo(torch.bfloat16).max
    for c, size in ((0, 0.01), (1, most)):
        sent = {"coded": torch.full((p.setting.count,), size, dtype=torch.bfloat16).view(torch.uint8)}
        about = Told(0, c, 4, {}, {}, {})
        assert inbox.put(up(p.method, p.setting, about, NOTHING._replace(tensors=sent)), c)
    after = inbox.close(state)
    assert all(v.isfinite().all() for v in after.tensors.values() if v.is_floating_point())
    assert facts(p.setting, 1).round == 1 and p.method.tell(p.setting, after, 1, 0)


@pytest.mark.parametrize(
    ("name", "recipe", "why"),
    [
        ("fedkseed", {"codec": "int8"}, "codec=int8: fedkseed cannot: what travels are a few numbers along seeded"),
        ("mezo", {"codec_down": "int8"}, "codec_down=int8: mezo cannot"),
        ("ferret", {"codec": "int4"}, "ferret cannot"),
        ("frl", {"codec": "int4"}, "frl cannot: clients send rankings"),
        ("coded", {"codec": "int4"}, "coded has codecs of its own"),
        ("legend", {"codec_down": "int8", "codec_feedback": "both"}, "legend cannot: it tells each client other"),
        ("diloco", {"codec": "int8"}, "bits=4 codes what goes up already"),
    ],
)  # fmt: skip
def test_where_it_cannot_be(bert, name, recipe, why):
    with pytest.raises(CommonweightError, match=why):
        small.prepared(bert, name, **recipe)


@pytest.mark.parametrize(
    ("recipe", "why"),
    [
        ({"codec": "int3"}, "unknown codec of exchange 'int3'"),
        ({"codec_down": "onebit"}, "unknown codec of exchange"),
        ({"codec": "int8", "codec_feedback": "both"}, "both without codec_down"),
        ({"codec_down": "compeft"}, "it is one of changes; wanted codec_feedback=both"),
        ({"codec": "int8", "codec_feedback": "server"}, "codec_feedback"),
    ],
)  # fmt: skip
def test_what_is_wrong_between_the_options(recipe, why):
    with pytest.raises(CommonweightError, match=why):
        Rounds(**recipe)


def test_every_method_says_whether_it_can():
    assert set(FLOATS) == {
        "diloco", "fed-sb", "fedavg", "fedcac", "fedpara", "ffa-lora", "fish-mask", "flag", "legend", "median",
        "merged", "pfedpara", "submodel", "trimmed-mean",
    }  # fmt: skip
    m = get("fedavg")
    assert around(m, None) is m and around(m, Coding()) is m and m.through is None


class Killed(Exception):
    pass


BOTH = {"codec": "int4", "codec_down": "int8", "codec_feedback": "both"}


@pytest.mark.parametrize(
    ("name", "how"), [("ffa-lora", BOTH), ("fedcac", {"codec": "compeft"}), ("submodel", {"codec": "int4"})]
)
def test_killed_and_resumed_to_the_same_bits(bert, tmp_path, name, how):
    """Some clients a round, so that what they keep is of several rounds. The copy in memory is that on disk."""
    recipe = {
        "method": name, "options": MORE.get(name, small.SMALL[name]), "clients": 3, "sample": 2, "rounds": 4,
        "steps": 1, "batch_size": 4, "lr": 1e-2, **how,
    }  # fmt: skip
    rows = tiny.rows(12)

    def kill(progress):
        if progress.round == 2:
            raise Killed

    def run(**more):
        return simulate(small.prepared_host(bert), rows, **recipe, **more)

    whole = run()
    with pytest.raises(Killed):
        run(out=tmp_path / "o", progress=kill)
    again = run(out=tmp_path / "o", resume=True)
    assert small.same(whole.state.tensors, again.state.tensors) and whole.state.facts == again.state.facts
    assert all(small.same(whole.kept.of(c), again.kept.of(c)) for c in range(3)) and whole.curve == again.curve
    assert any(n.startswith(LOST) for c in range(3) for n in again.kept.of(c))


def test_bytes_are_those_that_are_sent(bert):
    """In one mixed batch as one after the other."""
    how = {"method": "ffa-lora", "options": {"rank": 4}, "clients": 3, "rounds": 2, "batch_size": 4, "lr": 1e-2}
    rows = tiny.rows(24)
    bare, mixed, single = (
        simulate(small.prepared_host(bert), rows, **how, **more) for more in ({}, BOTH, {**BOTH, "mixed": 1})
    )
    assert (mixed.up, mixed.down) == (single.up, single.down)
    assert mixed.up < 0.3 * bare.up and mixed.down < 0.4 * bare.down
    for n, v in small.values(mixed).items():
        assert (v - small.values(single)[n]).abs().max() <= 0.05 * max(1.0, float(v.abs().max()))
    assert abs(mixed.curve[-1]["train_loss"] - bare.curve[-1]["train_loss"]) < 0.05


def test_with_a_private_mean(bert):
    """The server clips what was decoded."""
    how = {"clients": 3, "rounds": 2, "steps": 1, "batch_size": 4, "lr": 1e-2, "dp_clip": 0.01}
    run = simulate(small.prepared_host(bert), tiny.rows(12), method="fed-sb", options={"rank": 2}, **how, **BOTH)
    begin = small.start(small.prepared(bert, "fed-sb", {"rank": 2}))
    moved = sum(float((v - begin[n]).square().sum()) for n, v in small.values(run).items())
    assert 0 < moved**0.5 <= 2 * 0.01 * 1.001
