"""Tenants over tenants in a store: loaded with what they stand on, which is not removed, and counted once."""

import pytest
import torch

import commonweight as cw
from commonweight import CommonweightError
from commonweight.commons import Commons
from tests.laws.subjects import stir
from tests.models import answer, make


@pytest.fixture
def host():
    h = cw.Host(make("llama")[0])
    for i, n in enumerate("ab"):
        stir(h.add(n, "lora", rank=4, seed=i), i)
    stir(h.add("t", "psec", over=["a", "b"], hidden=4))
    return h


def out(h, name):
    _, batch = make("llama")
    with torch.no_grad(), h.route(name):
        return answer(h.model, batch)


def fresh():
    return cw.Host(make("llama")[0])


def test_it_is_loaded_with_what_it_stands_on(host, tmp_path):
    store = Commons(tmp_path / "s")
    with pytest.raises(CommonweightError, match="'a', which the store does not have with these numbers"):
        store.publish(host, "t")
    store.publish_all(host, ["t", "b", "a"])
    assert store.manifest("t").parents == ("a@1", "b@1") == store.manifest("t").below
    other = fresh()
    other.load_from(store, "t")
    assert list(other) == ["t"], "what goes with it has no name here"
    torch.testing.assert_close(out(other, "t"), out(host, "t"), rtol=0, atol=0)
    other.load_from(store, "a")
    other.remove("a")  # nobody else's
    both = fresh()
    both.load_from(store, "a")
    t = both.load_from(store, "t", as_="u")
    assert t.over[0] is both["a"], "numbers that are here are not read twice"
    with pytest.raises(CommonweightError, match="'u' stands on it"):
        both.remove("a")


def test_with_a_codec_its_tenants_are_as_they_were_stored(host, tmp_path):
    store = Commons(tmp_path / "s")
    store.publish(host, "a", codec="bfloat16")
    store.publish(host, "b")
    with pytest.raises(CommonweightError, match="'a', which the store does not have with these numbers"):
        store.publish(host, "t")
    other = fresh()
    for n in "ab":
        other.load_from(store, n)
    stir(other.add("t", "psec", over=["a", "b"], hidden=4))
    store.publish(other, "t")
    again = fresh()
    again.load_from(store, "t")
    torch.testing.assert_close(out(again, "t"), out(other, "t"), rtol=0, atol=0)


def test_what_is_stood_on_is_not_removed(host, tmp_path):
    store = Commons(tmp_path / "s")
    store.publish_all(host, ["a", "b", "t"])
    for name in ("a", "b@1"):
        with pytest.raises(CommonweightError, match=r"@1 cannot be removed: t stands on it; remove that first"):
            store.remove(name)
    assert sorted(store) == ["a", "b", "t"] and store.verify() == []
    store.remove("t")
    store.remove("a")
    assert sorted(store) == ["b"]


def test_a_later_version_below_changes_nothing(host, tmp_path):
    store = Commons(tmp_path / "s")
    store.publish_all(host, ["a", "b", "t"])
    before = out(host, "t")
    other = fresh()
    stir(other.load_from(store, "a"), 7)
    store.publish(other, "a")
    assert store.newest()["a"] == 2
    store.remove("a@2")
    store.publish(other, "a")
    store.gc(keep=1)
    assert {v for r in store.list() if r.name == "a" for v in r.versions} == {1, 2}, "the first is stood on"
    again = fresh()
    again.load_from(store, "t")
    torch.testing.assert_close(out(again, "t"), before, rtol=0, atol=0)


def test_bytes_count_what_is_below_once(host, tmp_path):
    store = Commons(tmp_path / "s")
    store.publish_all(host, ["a", "b"])
    alone = {r.name: r.marginal_bytes for r in store.list()}
    store.publish(host, "t")
    found = {r.name: r for r in store.list()}
    assert found["t"].marginal_bytes < alone["a"] / 2, "its own numbers and its manifest"
    manifest = len(store.manifest("a").text)
    assert found["a"].marginal_bytes == manifest, "its numbers would stay, since another needs them"
    total = store.nbytes
    store.remove("t")
    store.gc()
    assert total - store.nbytes == found["t"].marginal_bytes


def test_a_file_of_one(host, tmp_path):
    store = Commons(tmp_path / "s")
    for n in "abt":
        host.save(n, tmp_path / f"{n}.safetensors")
    with pytest.raises(CommonweightError, match="'a'"):
        store.publish_file(tmp_path / "t.safetensors")
    for n in "abt":
        store.publish_file(tmp_path / f"{n}.safetensors")
    other = fresh()
    other.load_from(store, "t")
    torch.testing.assert_close(out(other, "t"), out(host, "t"), rtol=0, atol=0)
    store.export("t", tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "t.safetensors").read_bytes()


def test_gates_over_gates(host, tmp_path):
    host.remove("t")
    for n in "ab":
        stir(host.add(f"{n}-gate", "phatgoose", over=[n]))
    host.add("t", "phatgoose", over=["a-gate", "b-gate"])
    store = Commons(tmp_path / "s")
    store.publish_all(host, ["t", "a-gate", "b-gate", "a", "b"])
    other = fresh()
    other.load_from(store, "t")
    torch.testing.assert_close(out(other, "t"), out(host, "t"), rtol=0, atol=0)
    both = fresh()
    both.load_from(store, "a")
    both.load_from(store, "t")
    with pytest.raises(CommonweightError, match="'a' cannot be removed: 'a-gate' stands on it"):
        both.remove("a")
    both.remove("t")
    both.remove("a")
    with pytest.raises(CommonweightError, match="a-gate stands on it"):
        store.remove("a")
