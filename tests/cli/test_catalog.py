"""What is read off the methods' files is what the methods are."""

from dataclasses import fields

import pytest

from commonweight.cli import catalog
from commonweight.core import CommonweightError, build, parse
from commonweight.merge.registry import available as merges
from commonweight.methods import available


def told(cls):
    return [(f.name, f.type, f.default, dict(f.metadata)) for f in fields(cls)]


def test_every_method_and_option():
    twins = catalog.methods()
    assert twins.keys() == available().keys()
    for name, method in available().items():
        mine, theirs = twins[name], method.config
        assert mine.__name__ == theirs.__name__
        assert [x[0::2] for x in told(mine)] == [x[0::2] for x in told(theirs)], name
        assert build(mine, {}) and [x[3] for x in told(mine)] == [x[3] for x in told(theirs)]


def test_every_merge_method():
    assert sorted(catalog.merges()) == sorted(merges())


def test_the_same_errors():
    for cls in (catalog.methods()["lora"], available()["lora"].config):
        with pytest.raises(CommonweightError, match="LoRA: rank is 0; it must be >= 1"):
            build(cls, {"rank": 0})
        with pytest.raises(CommonweightError, match="LoRA: rank=big: wanted int"):
            parse(cls, ["rank=big"])


def test_an_option_that_is_gone_is_said_to_be():
    for cls in (catalog.methods()["increlora"], available()["increlora"].config):
        with pytest.raises(CommonweightError, match="'most' is no option of IncreLoRA any more: a site is given"):
            parse(cls, ["most=4"])
