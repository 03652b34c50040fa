"""No method takes more than there are in silence: experts, prompts, vectors of a pool."""

from dataclasses import fields

import pytest

from commonweight.core import CommonweightError, build
from commonweight.lifelong import methods as lifelong
from commonweight.methods import available, resolve

CHOICES = {"active", "top", "topk", "top_k"}
MANY = 1_000_000
CHOOSING = [(n, f) for n, m in available().items() for f in fields(m.config) if f.name in CHOICES]
STREAMS = [(n, f) for n, m in lifelong.available().items() for f in fields(m.config) if f.name in CHOICES]


def test_methods_that_choose_are_seen():
    assert {n for n, _ in CHOOSING} >= {"dynmole", "meo", "mola", "mpoe", "prompt-pool", "smora", "smore", "vb-lora"}
    assert {n for n, _ in STREAMS} >= {"l2p"}


@pytest.mark.parametrize(("name", "field"), CHOOSING, ids=[n for n, _ in CHOOSING])
def test_more_than_there_are_is_refused(name, field):
    many = (MANY,) if isinstance(field.default, tuple) else MANY
    with pytest.raises(CommonweightError, match=rf"{field.name} .*{MANY}"):
        resolve(name, {field.name: many})


@pytest.mark.parametrize(("name", "field"), STREAMS, ids=[n for n, _ in STREAMS])
def test_a_stream_refuses_it_too(name, field):
    found = lifelong.get(name)
    with pytest.raises(CommonweightError, match=f"{field.name} {MANY} of 10 prompts; take {field.name} at most 10"):
        resolve(*found.adapter(build(found.config, {field.name: MANY})))


def test_parts_are_added_and_sums_choose_nothing():
    resolve("prompt-pool", {"prompts": 2, "parts": 3, "top": 6})
    resolve("prompt-pool", {"prompts": 1, "read": "weighed"})
    with pytest.raises(CommonweightError, match="top 7 of 6 prompts; take top at most 6"):
        resolve("prompt-pool", {"prompts": 2, "parts": 3, "top": 7})


def test_of_layers_with_other_numbers_the_largest_counts():
    resolve("mola", {"experts": (1, 4), "active": 3})
    with pytest.raises(CommonweightError, match="active 5 of 4 experts of any layer"):
        resolve("mola", {"experts": (1, 4), "active": 5})
