"""Lists of methods: found by name or config, refused with what is there."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

import commonweight as cw
from commonweight.core import Registry, config, option


@config
class Turn:
    by: int = option(1, "how far", ge=1)


@config
class Fold:
    pass


@dataclass(frozen=True)
class Way:
    name: str
    config: type


def test_a_list_is_asked_by_name_and_by_config():
    ways = Registry[Way]("way")
    turn, fold = Way("turn", Turn), Way("fold", Fold)
    ways.add(turn)
    ways.add(fold)
    assert list(ways.available()) == ["fold", "turn"] and ways.get("turn") is turn
    assert ways.resolve("turn", {"by": 3}) == (turn, Turn(by=3)) and ways.resolve(Turn(by=2), {}) == (turn, Turn(by=2))
    for again in (Way("turn", int), Way("other", Turn)):
        with pytest.raises(TypeError, match="registered twice"):
            ways.add(again)
    for ask, told in (
        (lambda: ways.get("trun"), "unknown way 'trun'; did you mean 'turn'"),
        (lambda: ways.resolve("turn", {"by": 0}), "by"),
        (lambda: ways.resolve(Turn(by=2), {"by": 3}), r"turn: give the options \['by'\] in the config"),
        (lambda: ways.resolve(3, {}), "3 is neither a way's name nor a way's config"),
    ):
        with pytest.raises(cw.CommonweightError, match=told):
            ask()
