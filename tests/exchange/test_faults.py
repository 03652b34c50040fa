"""A client does what it should not: it is counted by name, and the round goes on."""

import json
import math
import struct

import pytest
import torch
from safetensors.torch import load, save

from commonweight.exchange import simulate, simulation
from commonweight.exchange.asks import Trained
from commonweight.exchange.message import read_facts
from commonweight.exchange.work import Work
from tests.adapt import tiny
from tests.exchange import small

RECIPE = {"clients": 4, "rounds": 3, "batch_size": 4, "lr": 1e-2, "epochs": 1.0}


def again(data, tensors=None, **facts):
    """The same message with other facts or numbers."""
    said = {**read_facts(data).__dict__, **facts}
    return save(tensors or load(data), {"facts": json.dumps(said)})


def broken(data, value=float("nan")):
    found = load(data)
    found["*float32"][3] = value
    return again(data, found)


def reshaped(data):
    return again(data, {"*float32": load(data)["*float32"][:-1]})


FAULTS = {
    "vanished": lambda data: [],
    "answered twice": lambda data: [data, data],
    "old round": lambda data: [again(data, round=0), data],
    "not finite": lambda data: [broken(data)],
    "wrong shape": lambda data: [reshaped(data)],
    "not whole": lambda data: [data[: len(data) // 2]],
    "other base": lambda data: [again(data, base="0" * 32)],
    "other version": lambda data: [again(data, format=99)],
    "other run": lambda data: [again(data, run="another")],
    "other method": lambda data: [again(data, method="ffa-lora")],
    "too long": lambda data: [data + b"\0" * 100_000],
    "unknown client": lambda data: [again(data, client=77)],
}


@pytest.mark.parametrize("reason", FAULTS)
def test_it_is_counted_and_the_round_goes_on(bert, reason):
    """Client 1 does it in round 1; the others count as always."""

    def wire(round, client, data):
        return FAULTS[reason](data) if (round, client) == (1, 1) else [data]

    rows = tiny.rows(40)
    run = simulate(small.prepared_host(bert), rows, method="fed-sb", options={"rank": 2}, wire=wire, **RECIPE)
    refused = run.curve[1]["refused"]
    assert refused.pop(reason) == 1
    stays = reason in ("answered twice", "old round")
    assert refused == {}
    assert [r["replies"] for r in run.curve] == [4, 4 if stays else 3, 4]
    assert run.curve[0]["refused"] == run.curve[2]["refused"] == {}
    assert all(p.isfinite().all() for p in run.state.tensors.values())


def test_what_is_refused_changes_nothing(bert):
    """A client whose answer is broken has the weight of one that never answered."""
    rows, runs = tiny.rows(40), []
    for fault in ("not finite", "vanished"):
        wire = lambda r, c, data, f=fault: FAULTS[f](data) if c == 2 else [data]  # noqa: E731
        runs.append(simulate(small.prepared_host(bert), rows, method="ffa-lora", wire=wire, **RECIPE))
    assert small.same(runs[0].state.tensors, runs[1].state.tensors)


def test_too_few_answers_change_nothing(bert):
    rows = tiny.rows(40)
    wire = lambda r, c, data: [data] if c < 2 or r != 1 else []  # noqa: E731
    seen = []
    run = simulate(
        small.prepared_host(bert), rows, method="fed-sb", wire=wire, minimum=3,
        progress=lambda p: seen.append(p.refused), **RECIPE,
    )  # fmt: skip
    assert seen == [{}, {"vanished": 2}, {}]
    assert [r["replies"] for r in run.curve] == [4, 2, 4]


def test_slow_clients_and_lost_ones_are_left_out(bert):
    """A deadline at the median client's time: of clients that differ, about half come too late."""
    rows = tiny.rows(60)
    more = {"vanish": 0.3, "spread": 1.0, "deadline": 1.5, "clients": 12, "rounds": 4}
    run = simulate(small.prepared_host(bert), rows, method="fed-sb", **{**RECIPE, **more})
    late = sum(r["refused"].get("late", 0) for r in run.curve)
    vanished = sum(r["refused"].get("vanished", 0) for r in run.curve)
    assert late > 0 and vanished > 0
    assert all(r["replies"] + sum(r["refused"].values()) == 12 for r in run.curve)
    asked = run.seats[0]
    assert sum(s.up for s in run.seats.values()) == run.up and asked.down > 0
    assert sum(s.down for s in run.seats.values()) == run.down


def test_a_header_that_says_more_than_there_is(bert):
    def wire(round, client, data):
        return [struct.pack("<Q", 2**40) + data[8:]] if client == 0 else [data]

    run = simulate(small.prepared_host(bert), tiny.rows(40), method="fed-sb", wire=wire, **RECIPE)
    assert [r["refused"] for r in run.curve] == [{"not whole": 1}] * 3


def test_a_client_that_diverges_is_refused(bert):
    """NaN of one client reaches no other that was trained in the same batch."""
    rows = tiny.rows(40)
    runs = []
    for bad in (False, True):

        def wire(round, client, data, bad=bad):
            return ([broken(data, float("inf"))] if bad else []) if client == 3 else [data]

        runs.append(simulate(small.prepared_host(bert), rows, method="fed-sb", wire=wire, **RECIPE))
    assert small.same(runs[0].state.tensors, runs[1].state.tensors)
    assert torch.isfinite(runs[1].state.tensors["head.b"]).all()


class Spoiled(Work):
    """What client 1 asks for in round 1 is answered with numbers that are not finite."""

    def answer(self, round, asks):
        found = super().answer(round, asks)
        for i, (client, _) in enumerate(asks):
            if (round, client) == (1, 1):
                found[i] = spoiled(found[i])
        return found


def spoiled(answer):
    if isinstance(answer, float):
        return float("nan")
    which = "pools" if isinstance(answer, Trained) else "gradients"
    return answer._replace(**{which: {n: v * float("inf") for n, v in getattr(answer, which).items()}})


@pytest.mark.parametrize("method", small.METHODS)
def test_a_client_that_diverges_says_so_whatever_it_sends(bert, method, monkeypatch):
    """Bytes, orders and counts have no NaN. It keeps what it had, and takes part again in the next round."""
    monkeypatch.setattr(simulation, "Work", Spoiled)
    more = {"private": "*head*"} if method != "legend" else {}
    host = small.prepared_host(bert)
    run = simulate(host, tiny.rows(24), method=method, options=small.SMALL[method], **{**RECIPE, "clients": 3}, **more)
    assert [r["refused"] for r in run.curve] == [{}, {"not finite": 1}, {}]
    assert [r["replies"] for r in run.curve] == [3, 2, 3]
    assert all(v.isfinite().all() for v in run.state.tensors.values() if v.is_floating_point())
    assert all(v.isfinite().all() for v in run.kept.of(1).values() if v.is_floating_point())
    assert all(math.isfinite(r["train_loss"]) for r in run.curve)


@pytest.mark.parametrize(
    ("method", "kind"),
    [("fedkseed", "slopes"), ("mezo", "slopes"), ("diloco", "scales"), ("ferret", "scalars")],
)
def test_finite_numbers_of_which_the_server_would_make_infinite_ones(bert, method, kind):
    """The largest float32: the sum of several, or its product with a direction, is none."""
    most = torch.finfo(torch.float32).max

    def large(data):
        found = load(data)
        name = "*float32" if "*float32" in found else kind
        found[name] = torch.full_like(found[name], most)
        return again(data, found)

    wire = lambda r, c, data: [large(data)] if (r, c) == (1, 1) else [data]  # noqa: E731
    run = simulate(
        small.prepared_host(bert), tiny.rows(24), method=method, options=small.SMALL[method], wire=wire,
        **{**RECIPE, "clients": 3},
    )  # fmt: skip
    assert all(v.isfinite().all() for v in run.state.tensors.values() if v.is_floating_point())
    assert len(run.curve) == 3 and run.curve[0]["refused"] == {}
    assert all(p.isfinite().all() for p in small.values(run).values())
