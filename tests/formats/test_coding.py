"""Tenants' files with codecs: what a user saves and loads, every method, bad input, flipped bits."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import commonweight as cw
from commonweight.compare.size import nbytes
from commonweight.formats import codecs, coding, native
from commonweight.formats.codecs import CODECS, Compeft
from commonweight.host.files import settle
from tests.laws.subjects import METHODS, can, model_of, small, stir
from tests.models import make


def header(path) -> dict:
    return json.loads(safe_open(path, "pt").metadata()["commonweight"])


def rewrite(path, change):
    about, tensors = header(path), load_file(path)
    about.pop("digest")
    change(about, tensors)
    save_file(tensors, path, {"commonweight": json.dumps(about)})


@pytest.fixture
def host():
    return cw.Host(make("llama")[0])


@pytest.fixture
def tenant(host):
    return stir(host.add("t", "lora", rank=8))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "t.safetensors"


@pytest.mark.parametrize("method", METHODS)
def test_saved_loaded_and_saved_again_is_the_same_file(method, path):
    host = cw.Host(make(model_of(method))[0])
    if not can(method, host):
        pytest.skip("nothing to read in this model")
    tenant = stir(host.add("t", method, seed=3, **small(method)))
    for codec in ("int4", "compeft"):
        try:
            host.save("t", path, codec=codec)
        except cw.CommonweightError as e:
            assert codec == "compeft" and "no first values" in str(e)
            continue
        new = host.load("new", path)
        for name, pool in tenant.plan.pools.items():
            assert new.pools[name].dtype == tenant.pools[name].dtype
            assert new.pools[name].requires_grad == pool.train
            if not pool.train:
                assert new.pools[name].equal(tenant.pools[name])
        again = host.save("new", path.with_name("again.safetensors"), codec=codec)
        assert again.read_bytes() == path.read_bytes()
        host.remove("new")


def test_smaller_files_with_smaller_errors_first(host, tenant, path):
    plain, sizes, errors = host.save("t", path).stat().st_size, [], []
    for codec in (c for c in CODECS if c not in ("ordered", "onebit")):  # which is not for them, and refuses them
        sizes.append(host.save("t", path, codec=codec).stat().st_size)
        new = host.load(codec, path)
        errors.append(sum((new.pools[n] - p).norm().item() for n, p in tenant.named_parameters()))
        assert header(path)["format"] == 2 and header(path)["codec"] == codec
    assert [plain, *sizes] == sorted([plain, *sizes], reverse=True)
    assert errors == sorted(errors) and tenant.nbytes > 0.9 * plain - 4096


def test_a_plain_file_stays_of_format_1(host, tenant, path):
    host.save("t", path)
    assert header(path)["format"] == 1 and "codec" not in header(path)
    assert {t.dtype for t in load_file(path).values()} == {torch.float32}
    rewrite(path, lambda about, tensors: None)  # no digest: as files were before
    assert host.load("old", path).pools.keys() == tenant.pools.keys()


def test_patterns(host, tenant, path):
    host.save("t", path, codec={"*.q_proj.A": None, "*.A | *.q_proj.B": Compeft(density=0.5), "*.B": "int8"})
    said = header(path)["codec"]
    assert said["model.layers.{}.self_attn.q_proj.B"] == said["model.layers.{}.mlp.up_proj.A"] == "compeft"
    assert said["model.layers.{}.mlp.up_proj.B"] == "int8" and "model.layers.{}.self_attn.q_proj.A" not in said
    new = host.load("new", path)
    assert all(new.pools[n].equal(p) for n, p in tenant.pools.items() if n.endswith("q_proj.A"))
    assert not any(new.pools[n].equal(p) for n, p in tenant.pools.items() if n.endswith("up_proj.A"))


def test_a_frozen_pool_is_coded_only_by_name_and_an_integer_pool_never(host, path):
    tenant = stir(host.add("v", "vb-lora", compact=True, **small("vb-lora")))
    host.save("v", path, codec={"*": "int8"})
    new = host.load("new", path)
    assert all(new.pools[n].equal(p) for n, p in tenant.pools.items() if not p.is_floating_point())
    assert "vb-lora.bank" in native.layout(tenant.plan) and load_file(path)["vb-lora.bank"].dtype == torch.uint8


def test_a_tensor_that_would_not_get_smaller_stays(host, path):
    stir(host.add("s", "lora", rank=1, sites="*.0.*.q_proj", labels=None))
    host.save("s", path, codec="int8")
    tensors = load_file(path)
    assert all(t.dtype == torch.uint8 for t in tensors.values())
    tiny = cw.Plan({"x": cw.Pool((2,), cw.core.ZEROS)}, ())
    data = native.encode({}, tiny, {"x": torch.ones(2)}, None, "compeft")
    assert b'"F32"' in data and b"compeft" in data


def test_settled_pools_are_what_the_file_gives_back(host, tenant, path):
    host.save("t", path, codec="int4")
    settle(tenant, "int4")
    new = host.load("new", path)
    assert all(new.pools[n].equal(p) for n, p in tenant.pools.items())
    assert host.save("t", path.with_name("u.safetensors"), codec="int4").read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    ("codec", "message"),
    [
        ("int9", "t: unknown codec 'int9'; did you mean 'int"),
        ({"*.A": "int9"}, "t: unknown codec 'int9'"),
        ({"*.C": "int8"}, r"'\*.C' matches no saved float32 pool of this tenant; it has model.layers.0"),
        ({3: "int8"}, "3 matches no saved float32 pool"),
        ({"*.0.*.A": "int8"}, r"lie in one tensor, .* have different codecs; write a pattern that fits both"),
        (["int8"], "codec is .'int8'.; wanted one of bfloat16"),
    ],
)
def test_what_cannot_be_chosen(host, tenant, path, codec, message):
    with pytest.raises(cw.CommonweightError, match=message):
        host.save("t", path, codec=codec)
    assert not path.exists()


def test_numbers_too_large_for_a_codec(host, tenant, path):
    with torch.no_grad():
        tenant.pools["model.layers.0.self_attn.q_proj.B"][0, 0] = 3.4e38
    with pytest.raises(cw.CommonweightError, match=r"3\.4e\+38 is too large for the codec bfloat16; leave it out"):
        host.save("t", path, codec="bfloat16")


def test_compeft_needs_first_values(host, path):
    stir(host.add("p", "pissa", rank=2))
    with pytest.raises(cw.CommonweightError, match=r"compeft stores what training changed, .*give it another codec"):
        host.save("p", path, codec="compeft")
    host.save("p", path, codec="int8")
    host.load("new", path)


def test_a_newer_format_and_unknown_codecs_in_a_file(host, tenant, path):
    for change, message in (
        (lambda a, t: a.update(format=3), "format 3; this version reads up to 2: upgrade"),
        (lambda a, t: a.update(codec="int3"), "unknown codec 'int3'"),
        (lambda a, t: a.update(codec=3), "header is damaged"),
        (lambda a, t: a.update(codec={"x": 3}), "header is damaged"),
        (lambda a, t: a.update(codec={"x": "int8"}), "names a codec for x, which is not a float32 tensor"),
        (lambda a, t: a.update(codec="int4"), r"coded by int4, is \(\d+,\) torch.uint8, wanted"),
        (lambda a, t: a.pop("codec"), r"torch.uint8, wanted .* float32"),
        (lambda a, t: a.update(digest="x"), "header is damaged"),
        (lambda a, t: a.update(digest="0" * 32), "this file was altered"),
        (lambda a, t: next(iter(t.values()))[1].fill_(255), "holds NaN or infinity"),
    ):
        host.save("t", path, codec="int8")
        rewrite(path, change)
        with pytest.raises(cw.CommonweightError, match=message) as e:
            host.load("new", path)
        assert str(path) in str(e.value) and list(host) == ["t"]


@pytest.mark.parametrize("codec", [None, "int4"])
def test_every_flipped_bit_is_found(codec, path):
    host = cw.Host(make("mlp")[0])
    tenant = stir(host.add("t", "lora", rank=2))
    host.save("t", path, {"accuracy": 0.5}, codec=codec)
    whole = path.read_bytes()
    settle(tenant, codec)
    for byte in range(0, len(whole), max(1, len(whole) // 600)):
        data = bytearray(whole)
        data[byte] ^= 1 << (byte * 5 + byte // 8) % 8
        path.write_bytes(data)
        try:
            found = host.load("new", path)
        except cw.CommonweightError as e:
            assert path.name in str(e)
            continue
        # only the name of the digest can be hit unnoticed; all that it guards is then as it was
        assert "digest" not in header(path) and all(found.pools[n].equal(p) for n, p in tenant.pools.items())
        host.remove("new")


def test_a_store_shares_what_is_equal_under_one_codec(host, tmp_path):
    c = cw.Commons(tmp_path / "store")
    for seed, name in enumerate("ab"):
        stir(host.add(name, "vb-lora", seed=seed, common="tasks", **small("vb-lora")), seed)
    for name in "ab":
        c.publish(host, name, codec="int8")
    a, b = (c.manifest(n).pools for n in "ab")
    assert a["vb-lora.bank"] == b["vb-lora.bank"] and a["vb-lora.bank"].dtype == "U8"
    logits = next(k for k in a if k.endswith("logits"))
    assert a[logits].hash != b[logits].hash
    record = c.show("a")
    assert record.marginal_bytes < record.nbytes - a["vb-lora.bank"].nbytes + 1
    assert not c.verify()

    other = cw.Host(make("llama")[0])
    other.load_from(c, "a"), other.load_from(c, "b")
    assert other["a"].pools["vb-lora.bank"] is other["b"].pools["vb-lora.bank"]
    assert c.publish(other, "a", codec="int8").pools == a
    out = c.export("a", tmp_path / "a.safetensors")
    third = cw.Host(make("llama")[0])
    third.load("a", out)
    assert all(third["a"].pools[n].equal(p) for n, p in other["a"].pools.items())


ROWS = [{"input_ids": torch.arange(5, 11)[None], "labels": torch.arange(5, 11)[None]}]


@pytest.mark.parametrize(
    "choice", ["ordered", {"*.places": "ordered", "*": "bfloat16"}, {"*": "ordered"}, "int8", {"*": "int4"}]
)
def test_places_are_packed_and_come_back(tmp_path, choice):
    host = cw.Host(make("llama")[0])
    tenant = host.add("t", "fish", ratio=0.02, rows=ROWS)
    plain = host.save("t", tmp_path / "plain.safetensors").stat().st_size
    path = host.save("t", tmp_path / "t.safetensors", codec=choice)
    again = host.load("again", path)
    places = [n for n in tenant.pools if n.endswith(".places")]
    assert places and all(again.pools[n].dtype == torch.int32 for n in places)
    assert all(torch.equal(again.pools[n], tenant.pools[n]) for n in places)
    assert path.stat().st_size < plain - 2 * tenant.plan.count()  # of four bytes a place
    assert host.save("again", tmp_path / "b.safetensors", codec=choice).stat().st_size == path.stat().st_size


def test_numbers_and_places_are_both_packed(host, path):
    """Of 2 in 100 numbers: 8.25 bits each, and of their places less than 9, as many as gaps drawn at random have."""
    tenant = host.add("t", "fish", ratio=0.02, rows=ROWS)
    host.save("t", path, codec="int8")
    assert header(path)["codec"] == "int8+ordered"
    tensors, k = load_file(path), tenant.plan.count()
    numbers = sum(t.nbytes for n, t in tensors.items() if not n.endswith(".places"))
    places = sum(t.nbytes for n, t in tensors.items() if n.endswith(".places"))
    assert k <= numbers < 1.1 * k and places < 9 / 8 * k
    assert numbers + places <= nbytes(tenant.plan, "int8") < 1.1 * (numbers + places)
    host.save("t", path, codec={"*v_proj*": "bfloat16", "*": "int8"})
    said = header(path)["codec"]
    assert set(said.values()) == {"bfloat16", "int8", "ordered"} and {*said} == {*load_file(path)}


def test_places_stay_as_they_are_where_a_pattern_says_so(host, path):
    host.add("t", "fish", ratio=0.02, rows=ROWS)
    host.save("t", path, codec={"*.places": None, "*": "int8"})
    assert {t.dtype for n, t in load_file(path).items() if n.endswith(".places")} == {torch.int32}
    assert header(path)["codec"] == "int8"  # what a file of an earlier version says and has
    new = host.load("new", path)
    assert all(torch.equal(new.pools[n], p) for n, p in host["t"].pools.items() if n.endswith(".places"))


def test_a_late_tenant_leaves_the_places_of_its_common():
    pools = {
        f"{kind}.{scope}": cw.Pool((3,), cw.core.ZEROS, train=kind == "values", dtype=dtype, scope=scope)
        for scope in ("shared", "tenant")
        for kind, dtype in (("values", "float32"), ("places", "int32"))
    }
    plan = cw.Plan(pools, ())
    order = {n: [n] for n in pools}
    both = {"values.shared": "int4", "places.shared": "ordered"}
    for said, kept in ((None, {}), ("int4", {"values.shared": "int4"}), ("int4+ordered", both)):
        found = coding.choose(plan, order, coding.of_its_own(plan, order, "int8", said))
        assert {k: codecs.name(c) for k, c in found.items()} == {
            **kept, "values.tenant": "int8", "places.tenant": "ordered"
        }  # fmt: skip


def test_a_codec_that_is_for_other_pools():
    host = cw.Host(make("llama")[0])
    host.add("t", "lora", rank=2)
    with pytest.raises(cw.CommonweightError, match=r"codec: '\*' matches no saved int32 pool of this tenant$"):
        host.save("t", "nowhere.safetensors", codec={"*": "ordered"})
