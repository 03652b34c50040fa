"""Tenants between hosts and the store."""

import pytest
import torch

import commonweight as cw
from commonweight.commons import pool
from tests.host.test_errors import snapshot
from tests.laws.subjects import small, stir
from tests.models import answer, make


@pytest.fixture
def host():
    return cw.Host(make("llama")[0])


@pytest.fixture
def c(tmp_path):
    return cw.Commons(tmp_path / "store")


@pytest.mark.parametrize("method", ["lora", "mos", "lora-xs", "vera"])
def test_round_trip(host, c, tmp_path, method):
    stir(host.add("legal", method, **small(method)))
    m = c.publish(host, "legal", metrics={"accuracy": 0.95})
    assert (m.label, c.list()[0].metrics, c.list()[0].method) == ("legal@1", {"accuracy": 0.95}, method)
    other = cw.Host(make("llama")[0])
    again = other.load_from(c, "legal")
    assert again.name == "legal" and all(again.pools[k].equal(v) for k, v in host["legal"].pools.items())
    assert [*again.named_parameters()] and all(p.requires_grad for p in again.parameters())
    batch = make("llama")[1]
    with host.route("legal"), other.route("legal"), torch.no_grad():
        assert answer(host.model, batch).equal(answer(other.model, batch))
    file = host.save("legal", tmp_path / "f.safetensors", {"accuracy": 0.95})
    assert c.export("legal", tmp_path / "x.safetensors").read_bytes() == file.read_bytes()
    assert c.publish_file(file, "legal") == m and c.show("legal").versions == (1,)


def test_frozen_pools_are_one_tensor_trainable_ones_are_copies(host, c):
    for i, name in enumerate(("a", "b")):
        stir(host.add(name, "vera", rank=4, stored=True), i)
        c.publish(host, name)
    assert c.show("a").pools["vera.A"] == c.show("b").pools["vera.A"]
    other = cw.Host(make("llama")[0])
    a, b = other.load_from(c, "a"), other.load_from(c, "b")
    assert a.pools["vera.A"] is b.pools["vera.A"] and a.pools["vera.B"] is b.pools["vera.B"]
    twin = other.load_from(c, "a", as_="twin")
    assert twin.pools["vera.A"] is a.pools["vera.A"]
    for k, p in a.named_parameters():
        assert twin.pools[k].equal(p) and twin.pools[k].data_ptr() != p.data_ptr()
    for name in ("a", "b", "twin"):
        other.remove(name)
    del a, b, twin
    assert not other.roster.frozen


def test_what_is_in_memory_is_not_read_again(host, c, monkeypatch):
    stir(host.add("a", "vera", rank=4, stored=True))
    c.publish(host, "a")
    other = cw.Host(make("llama")[0])
    other.load_from(c, "a")
    read, plain = [], pool.Mapped.content
    monkeypatch.setattr(pool.Mapped, "content", lambda self: read.append(self.hash) or plain(self))
    other.load_from(c, "a", as_="twin")
    assert read and c.show("a").pools["vera.A"] not in read


def test_versions_and_names(host, c):
    stir(host.add("legal", "lora", rank=2))
    c.publish(host, "legal")
    stir(host["legal"], 1)
    c.publish(host, "legal")
    other = cw.Host(make("llama")[0])
    old = other.load_from(c, "legal@1", as_="old")
    new = other.load_from(c, "legal")
    assert (old.name, new.name, len(other)) == ("old", "legal", 2)
    assert not any(old.pools[k].equal(v) for k, v in new.pools.items())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (dict(name="legal"), "the tenant name 'legal' is taken"),
        (dict(name="legl", as_="x"), "unknown tenant 'legl'; did you mean 'legal'"),
        (dict(name="legal", as_="../x"), "cannot be a tenant's name"),
        (dict(name="legal@9", as_="x"), "legal has no version '9'; there are 1"),
    ],
)
def test_names_that_fail(host, c, call, message):
    stir(host.add("legal", "lora", rank=2))
    c.publish(host, "legal")
    before = snapshot(host)
    with pytest.raises(cw.CommonweightError, match=message):
        host.load_from(c, **call)
    assert snapshot(host) == before


def test_a_damaged_pool_leaves_the_host_as_it_was(host, c):
    stir(host.add("legal", "lora", rank=2))
    c.publish(host, "legal")
    before = snapshot(host)
    ref = [*c.manifest("legal").pools.values()][-1]
    at = pool.path(c.folder, ref.hash)
    whole = at.read_bytes()
    at.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(cw.CommonweightError, match=f"{at}: this pool was altered"):
        host.load_from(c, "legal", as_="x")
    at.unlink()
    with pytest.raises(cw.CommonweightError, match=f"legal@1: tensor .*: {at}: this pool is missing"):
        host.load_from(c, "legal", as_="x")
    assert snapshot(host) == before


def test_another_base(host, c):
    host.add("legal", "lora", rank=2)
    c.publish(host, "legal")
    other = cw.Host(make("llama", seed=1)[0])
    before = snapshot(other)
    with pytest.raises(cw.CommonweightError, match="legal@1: made for another base: same shapes, other weights"):
        other.load_from(c, "legal")
    assert snapshot(other) == before
    assert other.load_from(c, "legal", check_base=False)
    with pytest.raises(cw.CommonweightError, match="made for another base: this one has no site"):
        cw.Host(make("bert")[0]).load_from(c, "legal")


def test_nan_is_not_published(host, c):
    host.add("legal", "lora", rank=2)
    with torch.no_grad():
        next(host["legal"].parameters()).fill_(float("nan"))
    with pytest.raises(cw.CommonweightError, match="holds NaN or infinity; nothing was written"):
        c.publish(host, "legal")
    with pytest.raises(cw.CommonweightError, match="unknown tenant 'tax'"):
        c.publish(host, "tax")
    assert not c.list() and c.nbytes == 0


def test_what_is_derived_in_another_way_leaves_the_host_as_it_was(host, c, monkeypatch):
    stir(host.add("legal", "lora-xs", **small("lora-xs")))
    c.publish(host, "legal")
    assert "~check" in c.manifest("legal").pools
    before = snapshot(host)
    monkeypatch.setattr("commonweight.host.files.close", lambda a, b: False)
    with pytest.raises(cw.CommonweightError, match="legal@1: what lora-xs derives from the base differs here"):
        host.load_from(c, "legal", as_="x")
    assert snapshot(host) == before
