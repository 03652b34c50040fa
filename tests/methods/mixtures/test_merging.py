"""A mixture has no weight, and says which of its kind would have one; these do."""

from __future__ import annotations

import re

import pytest

import commonweight as cw
from commonweight.bind.mixture import GATED

from ...laws.subjects import small
from ...models import make

GATES = ("dynmole", "hydralora", "llava-mole", "molora", "mola", "mov", "mpoe", "smora", "smore")
BY_ROW = ("meo", "styleinject")


@pytest.mark.parametrize("method", (*GATES, *BY_ROW))
def test_what_has_gates_says_what_could_be_merged(method):
    host = cw.Host(make("bert")[0])
    host.add("t", method, **small(method))
    told = GATED.replace("token", "row") if method in BY_ROW else GATED
    with pytest.raises(cw.CommonweightError, match=f"cannot be merged: {re.escape(told)}"):
        host.merged("t")


def test_what_is_named_there_can_be():
    assert "`poly`" in GATED and "`lorahub`" in GATED
    host = cw.Host(make("bert")[0])
    host.add("t", "poly", **small("poly"))
    assert host.merged("t")
    for name in ("a", "b"):
        host.add(name, "lora", rank=2)
    host.add("hub", "lorahub", over=["a", "b"])
    assert host.merged("hub")
