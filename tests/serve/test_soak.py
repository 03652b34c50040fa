"""A short soak: what `python -m benchmarks.soak` does for hours."""

from __future__ import annotations

import logging

import pytest

from benchmarks.soak.ledger import BROKEN, GONE, Ledger
from benchmarks.soak.run import Sample, growth, soak
from benchmarks.soak.shop import Shop
from benchmarks.soak.world import World, Wrong


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    return Shop(tmp_path_factory.mktemp("shop"), ["ann", "gus"], 2, steps=8)


def test_a_short_soak(shop, tmp_path):
    found = soak(shop, tmp_path, 24, runs=2, steps=8)
    assert found["requests"] >= 24 and found["answer tokens compared"] > 30
    assert found["kinds"].keys() & {"put", "load", "evict", "damage"} and found["say their canary"] > 0


def test_it_sees_what_is_wrong(shop, tmp_path):
    world = World(shop, tmp_path)
    try:
        prompt = shop.prompt("ann", 1)
        told = {v: shop.told("ann", v, prompt).tokens[:6] for v in (1, 2)}
        assert told[1] != told[2]
        world.right("ann", [1], prompt, told[1])
        for wrong in (
            lambda: world.right("ann", [1], prompt, told[2]),
            lambda: world.right("ann", [GONE], prompt, told[1]),
        ):
            with pytest.raises(Wrong):
                wrong()
        world.own("ann", [1], "canary-of-ann canary-ann-1", prompt)
        for text in ("canary-of-gus", "canary-ann-2", 'no tenant "canary-gus-1"'):
            with pytest.raises(Wrong):
                world.own("ann", [1], text)
        logging.getLogger("commonweight.serve").info("failed", extra={"told": {"id": "x"}})
        with pytest.raises(Wrong, match="failed inside"):
            world.quiet()
    finally:
        world.close()


def test_the_ledger():
    ledger = Ledger(["a"], 2)
    assert ledger.may("a") == {GONE}
    ledger.put("a", 1)
    at = len(ledger.history)
    ledger.elsewhere("a", 2)
    assert ledger.may("a") == {1, 2} and ledger.since("a", at) == {1, 2}
    ledger.noticed()
    assert ledger.may("a") == {2}
    ledger.load("a", 1)
    ledger.damage(["a"])
    assert ledger.may("a") == {1}
    ledger.unloaded("a")
    assert BROKEN in ledger.may("a")
    ledger.deleted("a")
    assert ledger.may("a") == {GONE} and ledger.since("a", at) >= {1, 2, GONE, BROKEN}


def test_growth_is_of_the_last_quarter_over_the_second():
    assert growth([Sample(0, 0, 1)] * 7) is None
    assert growth([Sample(0, i, 100 + (i > 5)) for i in range(8)]) == 0.01
