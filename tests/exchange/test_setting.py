"""What both sides know, and which adapters cannot be exchanged."""

import pytest

import commonweight as cw
from commonweight.core import CommonweightError
from commonweight.exchange import simulate
from tests.adapt import tiny
from tests.exchange import small

SCHEDULED = "has a schedule or a penalty of one long run"
WHY = {
    "esft": "reads sites of kind expert",
    **dict.fromkeys(("dept", "p-tuning", "prompt-tuning"), "reads sites of kind prompt"),
    "state-offset": "reads sites of kind state",
}
LONG = sorted({*cw.methods.available()} - {*small.adapters()})


@pytest.mark.parametrize(
    ("how", "what"),
    [
        *(({"options": {"adapter": a}}, f"{a} {WHY.get(a, SCHEDULED)}") for a in LONG),
        ({"options": {"adapter": "poly", "tasks": "one,two"}}, r"poly goes by tasks here \(one, two\), and a client's"),
        ({"private": "*nothing*"}, r"private='\*nothing\*' is no trained pool; there: "),
        ({"private": "*"}, "no trained pool is left to travel"), ({"clints": 3}, "option of Local 'clints'"),
        ({"holdout": 1.0}, "holdout=1.0: wanted a share"), ({"minimum": 4}, "minimum=4, but a round has 3 clients"),
    ],
)  # fmt: skip
def test_what_cannot_be_leaves_the_host_as_it_was(bert, how, what):
    host = small.prepared_host(bert)
    with pytest.raises(CommonweightError, match=what):
        simulate(host, tiny.rows(12), **{"clients": 3, "rounds": 1, **how})
    assert list(host) == []


def test_an_adapter_that_begins_from_data_wants_rows(bert):
    with pytest.raises(CommonweightError, match="eva begins from data"):
        small.prepared(bert, "fedavg", {"adapter": "eva", "rank": 2})
    run = simulate(small.prepared_host(bert), tiny.rows(12), options={"adapter": "eva", "rank": 2}, clients=3, rounds=1)
    assert run.seats[1].setup and run.seats[1].down > run.seats[0].down


def test_options_that_are_not_the_method_s_are_the_adapter_s(bert):
    p = small.prepared(bert, "fedavg", {"adapter": "lora", "r": 3, "alpha": 2.0})
    assert (p.tenant.config.rank, p.tenant.config.alpha) == (3, 2.0)


def test_the_list_says_which_pools_are_trained():
    from commonweight.exchange import get

    assert get("fed-sb").trains == "those of lora-xs"
    assert get("fedavg").trains == "those of any adapter (lora)"
