"""Messages: what goes in comes out, and what is wrong is refused by name."""

import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save

from commonweight.exchange.message import FRAME, Facts, Part, Refused, bound, pack, payload, unpack, without

FACTS = Facts("fed-sb", "run", "f" * 32, 3, 2, 10)
TABLE = {"a.R": Part((4, 4)), "b.R": Part((2,)), "seeds": Part((None,), "int64", 5), "n": Part((3,), "int32")}


def tensors(seeds=2):
    return {
        "a.R": torch.randn(4, 4), "b.R": torch.randn(2), "seeds": torch.arange(seeds), "n": torch.ones(3).int(),
    }  # fmt: skip


def refused(data, table=TABLE, facts=FACTS):
    with pytest.raises(Refused) as e:
        unpack(data, table, facts)
    assert str(e.value).startswith(f"{e.value.reason}: ")
    return e.value.reason


@given(st.integers(0, 5), st.integers(-1, 10_000), st.integers(0, 2**40))
def test_what_goes_in_comes_out(seeds, client, rows):
    sent = tensors(seeds)
    facts, got = unpack(pack(replace(FACTS, client=client, rows=rows), sent, TABLE), TABLE, FACTS)
    assert facts == replace(FACTS, client=client, rows=rows)
    assert list(got) == list(TABLE) and all(torch.equal(got[k], sent[k]) for k in sent)


def test_bytes_are_the_numbers_and_a_frame():
    data = pack(FACTS, tensors(5), TABLE)
    assert payload(TABLE) == 4 * 18 + 8 * 5 + 4 * 3
    assert payload(TABLE) < len(data) <= payload(TABLE) + FRAME <= bound(TABLE)


def test_a_method_that_packs_something_else_is_a_fault():
    for wrong in ({"a.R": torch.zeros(4, 4)}, tensors() | {"b.R": torch.zeros(3)}, tensors(6)):
        with pytest.raises(ValueError, match="table has"):
            pack(FACTS, wrong, TABLE)


def test_too_long_is_not_read():
    assert refused(b"\xff" * (bound(TABLE) + 1)) == "too long"


@pytest.mark.parametrize("cut", [0, 4, 8, 40, -1])
def test_cut_off(cut):
    data = pack(FACTS, tensors(), TABLE)
    assert refused(data[:cut]) == "not whole"


def test_no_message_at_all():
    assert refused(b"\x80\x04K\x01." * 20) == "not whole"
    assert refused(save({"*float32": torch.zeros(18)})) == "not whole"
    assert refused(save({}, {"facts": json.dumps([1])})) == "not whole"
    for said in ({"round": "3"}, {"rows": True}, {"more": 1}):
        facts = json.dumps({**FACTS.__dict__, **said})
        assert refused(save({"*float32": torch.zeros(18)}, {"facts": facts})) == "not whole"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"format": 2}, "other version"), ({"method": "ffa-lora"}, "other method"), ({"run": "x"}, "other run"),
        ({"base": "0" * 32}, "other base"), ({"round": 2}, "old round"), ({"round": 4}, "old round"),
    ],
)  # fmt: skip
def test_of_something_else(change, reason):
    assert refused(pack(replace(FACTS, **change), tensors(), TABLE)) == reason


def test_a_newer_format_may_say_more():
    said = json.dumps({**FACTS.__dict__, "format": 2, "more": [1]})
    assert refused(save({"*float32": torch.zeros(18)}, {"facts": said})) == "other version"


def test_facts_alone_are_of_a_client_without_finite_numbers():
    assert refused(without(FACTS)) == "not finite"


def test_other_shapes():
    def sent(more):
        return save({**more}, {"facts": json.dumps(FACTS.__dict__)})

    good = {"*float32": torch.zeros(18), "*int32": torch.ones(3).int(), "seeds": torch.arange(2)}
    unpack(sent(good), TABLE, FACTS)
    for wrong in (
        {"*float32": torch.zeros(17)}, {"*float32": torch.zeros(2, 9)}, {"*float32": torch.zeros(18).double()},
        {"seeds": torch.arange(6)}, {"seeds": torch.zeros(2)}, {"seeds": torch.arange(4).view(2, 2)},
        {"more": torch.zeros(1)},
    ):  # fmt: skip
        assert refused(sent(good | wrong)) == "wrong shape"
    del good["seeds"]
    assert refused(sent(good)) == "wrong shape"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_numbers_that_cannot_be_used(value):
    bad = tensors()
    bad["b.R"][1] = value
    assert refused(pack(FACTS, bad, TABLE)) == "not finite"
