"""What the store says and holds: versions, bytes counted once, one file in and out, and what bad input gets."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import commonweight as cw
from commonweight.commons import Manifest, pool
from commonweight.commons.incoming import SMALL
from commonweight.commons.manifest import digest
from commonweight.formats.native import sealed
from tests.commons.small import HEADER, contents, tenant


@pytest.fixture
def c(tmp_path):
    return cw.Commons(tmp_path / "store")


@pytest.fixture
def two(c, tmp_path):
    """The store with two tenants that have one pool in common."""
    c.publish_file(tenant(tmp_path / "legal.safetensors", 1))
    c.publish_file(tenant(tmp_path / "tax.safetensors", 2))
    return c


def test_opens_what_it_made(two):
    again = cw.Commons(str(two.folder))
    assert [*again] == ["legal", "tax"] and len(again) == 2 and "tax" in again and "t" not in again
    assert again.list() == two.list() and again.verify() == []


def test_versions(two, tmp_path):
    first = contents(two, "legal")
    m = two.publish_file(tenant(tmp_path / "legal.safetensors", 3), metrics={"f1": 0.5}, parents=["tax", "legal@1"])
    assert m.label == "legal@2" and m.parents == ("tax@1", "legal@1") and m.metrics == {"f1": 0.5}
    assert contents(two, "legal@1") == first != contents(two, "legal") == contents(two, "legal@2")
    new, old = two.show("legal"), two.show("legal@1")
    assert (new.version, old.version) == (2, 1) and new.versions == old.versions == (1, 2)
    assert old.metrics == {"accuracy": 0.01} and new.parents == ("tax@1", "legal@1")
    two.remove("legal@2")
    assert contents(two, "legal") == first and two.show("legal").versions == (1,)


def test_equal_pools_are_one_file_and_counted_once(two):
    legal, tax = two.list()
    assert legal.pools["common"] == tax.pools["common"] and len({*legal.pools.values(), *tax.pools.values()}) == 3
    assert len([*two.folder.glob("pools/??/*")]) == 3 and len([*two.folder.glob("blueprints/*")]) == 1
    m = two.manifest("tax")
    size = m.pools["common"].nbytes + len(m.blueprint.text)
    assert legal.nbytes - legal.marginal_bytes == tax.nbytes - tax.marginal_bytes == size
    assert two.nbytes == legal.marginal_bytes + tax.marginal_bytes + size


def test_marginal_bytes_are_what_leaves(two, tmp_path):
    two.publish_file(tenant(tmp_path / "legal.safetensors", 3))
    for name in ("legal", "tax"):
        before, marginal = two.nbytes, two.show(name).marginal_bytes
        two.remove(name)
        freed = two.gc()
        assert before - two.nbytes == marginal and freed.pools == 2 and two.verify() == []
    assert two.nbytes == 0 and two.list() == [] and not [*two.folder.glob("blueprints/*")]


def test_gc_keeps_versions(two, tmp_path):
    for seed in (3, 4):
        two.publish_file(tenant(tmp_path / "legal.safetensors", seed))
    assert two.gc() == (0, 0, 0, 0)
    kept = contents(two, "legal")
    freed = two.gc(keep=1)
    assert (freed.versions, freed.pools) == (2, 2) and two.show("legal").versions == (3,)
    assert contents(two, "legal") == kept and two.verify() == []
    with pytest.raises(cw.CommonweightError, match="keep=0: wanted 1 or more"):
        two.gc(keep=0)


def test_out_as_it_came_in(two, tmp_path):
    out = two.export("legal", tmp_path / "out.safetensors")
    assert out.read_bytes() == (tmp_path / "legal.safetensors").read_bytes()


def test_a_pool_is_a_safetensors_file(two, tmp_path):
    ref = two.manifest("legal").pools["common"]
    at = two.folder / "pools" / ref.hash[:2] / f"{ref.hash}.safetensors"
    value = load_file(at)["pool"]
    assert value.equal(load_file(tmp_path / "legal.safetensors")["common"]) and at.stat().st_size == ref.nbytes


def test_small_pools_of_its_own_are_one_file(two, tmp_path):
    half, own = (two.manifest("legal").pools[k] for k in ("half", "own"))
    assert half.hash == own.hash and (half.at, own.at) == (0, half.numbers)
    pack = load_file(two.folder / "pools" / own.hash[:2] / f"{own.hash}.safetensors")["pool"]
    there = load_file(tmp_path / "legal.safetensors")
    assert bytes(pack) == b"".join(bytes(there[k].view(torch.uint8).flatten()) for k in ("half", "own"))
    large = {"own": torch.randn(SMALL // 4), "half": torch.ones(3), "tiny": torch.ones(2)}
    (tmp_path / "large.safetensors").write_bytes(sealed({**HEADER, "base": "", "own": True}, large))
    pools = two.publish_file(tmp_path / "large.safetensors").pools
    assert pools["own"].at is None and pools["half"].hash == pools["tiny"].hash, "a large one is a file of its own"
    assert all(torch.equal(two.fetch("large").read(k), v) for k, v in large.items()) and two.verify() == []


def test_a_file_that_does_not_say_what_is_its_own(two, tmp_path):
    file = tenant(tmp_path / "old.safetensors", 1, own=None)
    m = two.publish_file(file)
    assert m.own is None and all(r.at is None for r in m.pools.values()) and "own" not in m.tenant
    assert contents(two, "old") == contents(two, "legal")
    assert two.export("old", tmp_path / "out.safetensors").read_bytes() == file.read_bytes()
    assert two.diff("old", "legal").same == ("common", "half", "own"), "in a pack or not"
    bad = tenant(tmp_path / "bad.safetensors", 1, own=["what"])
    with pytest.raises(cw.CommonweightError, match=r"\('own' names what, which is not there\); save the tenant again"):
        two.publish_file(bad)


def test_one_more_tenant_costs_its_numbers_and_little_more(two):
    m = two.manifest("tax")
    numbers = sum(r.numbers for k, r in m.pools.items() if k != "common")
    assert two.show("tax").marginal_bytes - numbers < 450


def test_diff(two, tmp_path):
    two.publish_file(tenant(tmp_path / "plain.safetensors", 1, common=None, config={"rank": 4}))
    d = two.diff("legal", "tax")
    assert d.same == ("common",) and set(d.changed) == {"own", "half"} and not d.only_a + d.only_b
    assert (
        d.about == {"metrics.accuracy": (0.01, 0.02)} and d.common_bytes == two.manifest("tax").pools["common"].nbytes
    )
    d = two.diff("legal", "plain")
    assert d.only_a == ("common",) and set(d.same) == {"own", "half"} and d.about == {"config.rank": (None, 4)}


def test_the_index_is_only_a_copy(two, tmp_path):
    index = two.folder / "index.txt"
    before, whole = two.list(), index.read_bytes()
    for wrong in (b"", b"rubbish\n", whole[:-9], whole.replace(b"0.01", b"0.99"), whole + whole, whole + b"torn"):
        index.write_bytes(wrong)
        assert two.list() == before
    two.publish_file(tenant(tmp_path / "law.safetensors", 5))  # cuts the torn end off
    assert index.read_bytes().startswith(whole + b"law@1.") and two.verify() == []
    index.unlink()
    assert [r.name for r in two.list()] == ["law", "legal", "tax"] and two.verify() == []


def test_a_reader_mends_an_index_that_lacks_much(two):
    m = two.manifest("tax")
    for i in range(101):
        other = Manifest(f"t{i}", 1, m.tenant, m.pools, (), m.created)
        (two.folder / "tenants" / other.file).write_bytes(other.text)
    assert len(two.list()) == 103
    assert len((two.folder / "index.txt").read_bytes().splitlines()) == 1 + 103 and two.verify() == []


@pytest.mark.parametrize("name", ["../x", "a/b", "a\\b", ".hidden", "", "a@1", "x\n", "/etc/passwd", "..", "a" * 101])
def test_no_name_leaves_the_folder(two, tmp_path, name):
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(cw.CommonweightError, match="cannot be a tenant's name"):
        two.publish_file(tmp_path / "legal.safetensors", name)
    for act in (two.remove, two.fetch, two.show):
        with pytest.raises(cw.CommonweightError, match=r"cannot be a tenant's name|unknown tenant 'a'"):
            act(name)
    assert sorted(tmp_path.rglob("*")) == before


def test_unknown_names(two):
    for act in (two.remove, two.fetch, two.show, two.manifest):
        with pytest.raises(cw.CommonweightError, match="unknown tenant 'lega'; did you mean 'legal'"):
            act("lega")
    with pytest.raises(cw.CommonweightError, match="legal has no version '7'; there are 1"):
        two.fetch("legal@7")


def test_no_store(tmp_path):
    with pytest.raises(cw.CommonweightError, match="is not a store; `commonweight store init` makes one"):
        cw.Commons(tmp_path / "nowhere", make=False)
    assert len(cw.Commons(tmp_path / "new" / "folders")) == 0
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "new" / "folders" / "store.json").unlink()
    with pytest.raises(cw.CommonweightError, match=r"notes.txt is a file; wanted a folder"):
        cw.Commons(tmp_path / "notes.txt" / "store")
    with pytest.raises(cw.CommonweightError, match=r"is not a store and holds new; name a new or an empty folder"):
        cw.Commons(tmp_path)
    with pytest.raises(cw.CommonweightError, match="is a file; a store is a folder"):
        cw.Commons(tmp_path / "notes.txt")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["new", "notes.txt"]


def test_a_newer_store(two):
    (two.folder / "store.json").write_text(json.dumps({"commons": "commonweight", "format": 3}))
    with pytest.raises(cw.CommonweightError, match="a store of format 3; this version reads up to 2: upgrade"):
        cw.Commons(two.folder)
    (two.folder / "store.json").write_text("{}")
    with pytest.raises(cw.CommonweightError, match="altered; it must read"):
        cw.Commons(two.folder)


def as_of_old(c) -> None:
    """Makes of a store what commonweight 0.1.0 wrote: format 1, every manifest with all that it says, no packs."""
    for name in c:
        got, m = c.fetch(name), c.manifest(name)
        refs = {}
        for k in got.hashes:
            content = got.content(k)
            refs[k] = pool.address(content), content.dtype, content.shape
            pool.write(c.folder, refs[k][0], content)
        whole = {
            "commons": 1, "name": name, "version": m.version, "pools": refs, "parents": m.parents, "created": m.created,
            "tenant": {k: v for k, v in m.tenant.items() if k != "own"},
        }  # fmt: skip
        text = json.dumps(whole, sort_keys=True, separators=(",", ":")).encode()
        (c.folder / "tenants" / m.file).unlink()
        (c.folder / "tenants" / f"{m.label}.{digest(text)}.json").write_bytes(text)
    (c.folder / "index.txt").unlink()
    (c.folder / "store.json").write_bytes(b'{"commons":"commonweight","format":1}\n')
    c.gc()
    shutil.rmtree(c.folder / "blueprints")


def test_a_store_of_old(two, tmp_path):
    before, records = {n: contents(two, n) for n in two}, two.list()
    as_of_old(two)
    c = cw.Commons(two.folder)
    assert {n: contents(c, n) for n in c} == before and c.verify() == []
    for new, old in zip(c.list(), records):
        assert (new.name, new.method, new.metrics, new.base) == (old.name, old.method, old.metrics, old.base)
        assert len(set(new.pools.values())) == 3, "one file for each"
    nbytes = c.nbytes
    assert c.list()[0].marginal_bytes + c.list()[1].nbytes == nbytes
    assert json.loads((c.folder / "store.json").read_bytes())["format"] == 1, "reading changes nothing"
    m = c.publish_file(tenant(tmp_path / "legal.safetensors", 3))
    assert m.label == "legal@2" and json.loads((c.folder / "store.json").read_bytes())["format"] == 2
    assert contents(c, "legal@1") == before["legal"] and contents(c, "tax") == before["tax"]
    assert c.diff("legal@1", "legal").same == ("common",) and c.verify() == []
    assert c.gc(keep=1).versions == 1 and c.verify() == [] and [*c] == ["legal", "tax"]
    assert c.export("tax", tmp_path / "o.safetensors") and contents(c, "tax") == before["tax"]


def put(c, change) -> None:
    """A manifest that says what it should not, under a name with the right digest."""
    m = c.manifest("tax")
    raw = json.loads(m.text)
    raw["name"] = "odd"
    change(raw)
    text = json.dumps(raw).encode()
    (c.folder / "tenants" / f"odd@1.{digest(text)}.json").write_bytes(text)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.update(commons=3), "manifest format 3; this version reads up to 2: upgrade"),
        (lambda r: r.update(pack="../../../../etc/passwd"), "not a manifest that commonweight wrote"),
        (lambda r: r.update(blueprint="../../../../etc/passwd"), "is not a blueprint's hash"),
        (lambda r: r.update(own=[["PICKLE", [1]]] * 2), "not a manifest that commonweight wrote"),
        (lambda r: r.update(own=[["F32", [-1]]] * 2), "not a manifest that commonweight wrote"),
        (lambda r: r.update(own=[["F32", [1]]]), "not a manifest that commonweight wrote"),
        (lambda r: r.update(own=3), "not a manifest that commonweight wrote"),
        (lambda r: r.pop("tenant"), "not a manifest that commonweight wrote"),
        (lambda r: r.update(name="tax"), "it calls itself tax@1"),
        (lambda r: r.update(name="../odd"), "cannot be a tenant's name"),
        (lambda r: r.update(commons=1, pools=3), "not a manifest that commonweight wrote"),
        (lambda r: r.update(commons=1, pools={"own": ["../../x", "F32", [1]]}), "not a manifest that commonweight"),
    ],
)
def test_an_odd_manifest(two, change, message):
    put(two, change)
    with pytest.raises(cw.CommonweightError, match=message):
        two.fetch("odd")
    (problem,) = two.verify()
    assert problem.tenants == ("odd@1",)
    with pytest.raises(cw.CommonweightError, match=message):
        two.gc()
    assert contents(two, "legal") and two.remove("odd") is None and two.verify() == []


def test_what_cannot_be_published(two, tmp_path):
    before = sorted(two.folder.rglob("*"))
    file = tenant(tmp_path / "new.safetensors", 9)
    bad = tmp_path / "bad.safetensors"
    for kwargs, message in (
        ({"metrics": {"accuracy": float("nan")}}, "the metrics are not JSON"),
        ({"metrics": {"accuracy": object()}}, "the metrics are not JSON"),
        ({"parents": ["legl"]}, "unknown tenant 'legl'; did you mean 'legal'"),
    ):
        with pytest.raises(cw.CommonweightError, match=message):
            two.publish_file(file, **kwargs)
    whole = file.read_bytes()
    for data, message in (
        (whole[:-5], "not a whole safetensors file"),
        (b"", "it is empty"),
        (whole[:-4] + b"\0\0\xc0\x7f", "holds NaN or infinity; nothing was published"),
        (whole[:-4] + b"\0\0\x80\x3f", "this file was altered"),
    ):
        bad.write_bytes(data)
        with pytest.raises(cw.CommonweightError, match=message):
            two.publish_file(bad)
    with pytest.raises(cw.CommonweightError, match="no such file"):
        two.publish_file(tmp_path / "none.safetensors")
    assert sorted(two.folder.rglob("*")) == before


def test_bytes_while_another_process_takes_files_away(two, monkeypatch):
    whole, glob = two.nbytes, Path.glob
    gone = lambda self, pattern: [*glob(self, pattern), self / "pools" / "ab" / "gone.safetensors"]  # noqa: E731
    monkeypatch.setattr(Path, "glob", gone)
    assert two.nbytes == whole > 0
