"""Tenants that a stream goes on from: `gc` keeps them, `remove` says who misses them."""

import json

import pytest

from commonweight import Commons, CommonweightError
from tests.commons.small import tenant

STAGE = {"task": "a", "scores": {"a": 0.5}}


@pytest.fixture
def shop(tmp_path):
    """Three versions of a tenant; a stream began with the first and goes on from the second."""
    shop = Commons(tmp_path / "shop")
    for seed in range(3):
        shop.publish_file(tenant(tmp_path / "legal.safetensors", seed))
    stages = [{**STAGE, "tenants": {"a": "legal@1"}}, {**STAGE, "tenants": {"a": "legal@2"}}]
    record(shop, {"stages": stages})
    return shop


def record(shop, told):
    at = shop.folder / "streams" / "orders"
    at.mkdir(parents=True, exist_ok=True)
    (at / "stream.json").write_text(told if isinstance(told, str) else json.dumps(told))


def test_gc_keeps_what_a_stream_goes_on_from(shop):
    assert shop.gc(keep=1).versions == 1
    shop.manifest("legal@2")
    with pytest.raises(CommonweightError):
        shop.manifest("legal@1")


def test_what_has_yet_to_be_measured_is_kept_too(shop):
    stages = [{"task": "a", "tenants": {"a": "legal@1"}}, {**STAGE, "tenants": {"a": "legal@2"}}]
    record(shop, {"stages": stages})
    assert shop.gc(keep=1).versions == 0


def test_remove_says_who_misses_it(shop):
    with pytest.warns(UserWarning, match="the stream orders went on from legal@2: it can no longer be resumed"):
        shop.remove("legal@2")
    shop.remove("legal@1")


@pytest.mark.parametrize("told", ["{", "[]", '{"stages": [3]}', '{"stages": [{"tenants": []}]}'])
def test_a_damaged_record_frees_nothing(shop, told):
    record(shop, told)
    for free in (lambda: shop.gc(keep=1), lambda: shop.remove("legal@1")):
        with pytest.raises(CommonweightError, match=r"orders.stream\.json: cannot be read as a stream"):
            free()
    assert shop.gc().versions == 0
    shop.manifest("legal@1")
