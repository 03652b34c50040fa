"""DiLoCo and Streaming DiLoCo beside their formulas, written out a second time as plain loops."""

import pytest
import torch

from commonweight.core import CommonweightError, parse
from commonweight.exchange import simulate
from commonweight.exchange.asks import Train, drive
from commonweight.exchange.methods.diloco import DiLoCo
from commonweight.exchange.outer import coded, decoded, fragments, layer, nesterov
from commonweight.exchange.registry import Reply
from commonweight.exchange.rounds import down, told, up
from tests.adapt import tiny
from tests.exchange import small

RECIPE = {"clients": 2, "rounds": 5, "batch_size": 4, "lr": 1e-2, "schedule": "constant", "weigh": "clients"}


def written_out(p, w, c, rounds):
    """theta_outer after the rounds: replicas that live on in memory, no messages, no server."""
    begin = small.start(p)
    names = p.setting.travels
    outer, speed = {n: begin[n].double() for n in names}, {n: torch.zeros_like(begin[n]).double() for n in names}
    local = [{n: v.clone() for n, v in begin.items()} for _ in range(2)]
    moments: list[dict] = [{}, {}]
    per = c.steps // c.fragments
    of = {n: (layer(n) or 0) % c.fragments for n in names}
    for t in range(rounds):
        arrived = [n for n in names if t and of[n] == (t - 1) % c.fragments]
        for i in range(2):
            at = 0
            for steps, mixes in ((c.delay if t else 0, True), (per - (c.delay if t else 0), False)):
                if steps:
                    (done,) = w.answer(t, [(i, Train(local[i], steps, moments[i], first=at))])
                    local[i], moments[i], at = dict(done.pools), done.moments, at + steps
                if mixes:
                    for n in arrived:
                        local[i][n] = c.alpha * local[i][n] + (1 - c.alpha) * outer[n].float()
        for n in (n for n in names if of[n] == t % c.fragments):
            d = torch.stack([outer[n].float() - one[n] for one in local]).double().mean(0)
            speed[n] = c.outer_momentum * speed[n] + d
            outer[n] = (outer[n] - c.outer_lr * (d + c.outer_momentum * speed[n])).float().double()
    return outer


@pytest.mark.parametrize(
    "options",
    [{"steps": 3}, {"steps": 4, "fragments": 2}, {"steps": 6, "fragments": 2, "delay": 2, "alpha": 0.5}],
    ids=["plain", "streaming", "overlapped"],
)
def test_as_the_formula_says(bert, options):
    p = small.prepared(bert, "diloco", {"rank": 2, **options}, **RECIPE)
    w = small.work(p, (9, 9))
    wanted = written_out(p, w, p.setting.config, 5)
    state, keep = p.method.begin(p.setting, small.start(p)), {0: {}, 1: {}}
    for t in range(5):
        replies = []
        for i in (0, 1):
            data = down(p.method, p.setting, state, t, i)
            got = told(p.method, p.setting, data, t, i, 9, small.start(p), keep[i])
            sent = drive(p.method.client(p.setting, got), lambda ask: w.answer(t, [(i, ask)])[0])  # noqa: B023
            assert up(p.method, p.setting, got, sent)
            keep[i] = sent.keep
            replies.append(Reply(i, 9, sent.tensors))
        state = p.method.gather(p.setting, state, t, replies)
    for n, v in p.method.pools(p.setting, state).items():
        torch.testing.assert_close(v.double(), wanted[n], atol=1e-6, rtol=1e-5)


def test_a_step_a_round_with_plain_sgd_is_the_mean_of_the_clients(bert):
    """H = 1, outer SGD of rate 1: synchronous data parallel, as FedAvg with one step of SGD a round."""
    rows = tiny.rows(16)
    how = {**RECIPE, "rounds": 3, "steps": 1, "optimizer": "sgd", "clip": 0.0, "lr": 0.1}
    one = simulate(
        small.prepared_host(bert), rows, method="diloco",
        options={"rank": 2, "outer_lr": 1.0, "outer_momentum": 0.0}, **how,
    )  # fmt: skip
    other = simulate(small.prepared_host(bert), rows, method="fedavg", options={"rank": 2}, **how)
    for n, v in small.values(one).items():
        torch.testing.assert_close(v, small.values(other)[n], atol=1e-6, rtol=1e-5)


def test_numbers_that_float32_holds_give_the_same_bits():
    """Where no operation rounds, the outer step on changes is the mean of the gradients to the bit."""
    g = torch.Generator().manual_seed(0)
    theta = torch.randint(-512, 512, (64,), generator=g) / 64
    grads = [torch.randint(-512, 512, (64,), generator=g) / 64 for _ in range(4)]
    change = torch.stack([theta - (theta - 0.25 * x) for x in grads]).mean(0)
    new, _ = nesterov({"w": theta}, {}, {"w": change}, 1.0, 0.0)
    assert torch.equal(new["w"], theta - 0.25 * torch.stack(grads).mean(0))


@pytest.mark.parametrize(("bits", "worst"), [(8, 2.0**-4), (4, 1 / 3)])
def test_small_codes(bits, worst):
    x = torch.randn(3, 7, generator=torch.Generator().manual_seed(1))
    codes, scale = coded(x, bits)
    y = decoded(codes, scale, bits, x.shape)
    assert codes.dtype is torch.uint8 and len(codes) == (21 * bits + 7) // 8 and y.shape == x.shape
    large = x.abs() > float(x.abs().max()) / 64
    assert ((y - x).abs() <= worst * x.abs() + 1e-7)[large].all()
    assert torch.equal(decoded(*coded(y, bits), bits, x.shape), y), "codes of what a code can say"
    assert torch.equal(decoded(*coded(torch.zeros(5), bits), bits, (5,)), torch.zeros(5))


def test_e3m0_by_hand():
    x = torch.tensor([1.0, -0.76, 0.74, 0.5, -0.015625, 0.0077, 0.0])
    assert decoded(*coded(x, 4), 4, (7,)).tolist() == [1.0, -1.0, 0.5, 0.5, -0.015625, 0.0, 0.0]


def test_codes_that_are_no_number_count_as_zero():
    assert decoded(torch.tensor([0x7F, 0xFF, 0x38], dtype=torch.uint8), torch.tensor(2.0), 8, (3,)).tolist() == [
        0,
        0,
        2,
    ]


def test_fragments_cover_every_pool_once(bert):
    p = small.prepared(bert, "diloco", {"rank": 2}, **RECIPE)
    parts = fragments(p.setting.travels, 2)
    assert sorted(n for some in parts for n in some) == sorted(p.setting.travels)
    with pytest.raises(CommonweightError, match="fragments=5: the pools lie in 2 layers"):
        fragments(p.setting.travels, 5)


@pytest.mark.parametrize("bits", [32, 8, 4])
def test_a_run_with_vanishing_clients(bert, bits):
    run = simulate(
        small.prepared_host(bert), tiny.rows(24), method="diloco", vanish=0.3, clients=4, rounds=4, batch_size=4,
        private="*head*", options={"rank": 2, "steps": 2, "fragments": 2, "bits": bits},
    )  # fmt: skip
    assert all(r["outer_norm"] > 0 for r in run.curve if r["replies"])
    assert len({r["up"] for r in run.curve if r["replies"]}) > 1


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"steps": 5, "fragments": 2}, "steps=5 is no multiple of fragments=2"),
        ({"steps": 4, "fragments": 2, "delay": 2}, "a round has 2 steps, and it must be fewer"),
        ({"delay": 1}, "delay needs steps"),
    ],
)
def test_what_cannot_be(options, what):
    with pytest.raises(ValueError, match=what):
        DiLoCo(**options)


def test_options_of_a_command_line():
    assert parse(DiLoCo, ["bits=4", "steps=6", "fragments=2"]) == {"bits": 4, "steps": 6, "fragments": 2}
    with pytest.raises(CommonweightError, match=r"bits=5: wanted 32\|8\|4"):
        parse(DiLoCo, ["bits=5"])
