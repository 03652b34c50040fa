"""The same tenant published again, and manifests that were lost."""

import itertools
import os

import pytest

import commonweight as cw
from commonweight.commons import index
from commonweight.commons.again import told
from tests.commons.small import die_at, tenant


@pytest.fixture
def c(tmp_path):
    c = cw.Commons(tmp_path / "store")
    c.publish_file(tenant(tmp_path / "legal.safetensors", 1))
    c.publish_file(tenant(tmp_path / "tax.safetensors", 2))
    return c


def files(c):
    return {p.relative_to(c.folder): p.read_bytes() for p in c.folder.rglob("*") if p.is_file()}


def test_the_same_content_is_no_new_version(c, tmp_path):
    before, first = files(c), c.manifest("legal")
    assert c.publish_file(tmp_path / "legal.safetensors") == first and files(c) == before
    other = tenant(tmp_path / "release.safetensors", 1, version="another release")
    assert c.publish_file(other, "legal").version == 1
    assert c.publish_files([tmp_path / "legal.safetensors", tmp_path / "tax.safetensors"])[1].label == "tax@1"
    assert c.publish_file(tmp_path / "legal.safetensors", parents=["tax"]).label == "legal@2"
    assert c.publish_file(tmp_path / "legal.safetensors", parents=["tax@1"]).label == "legal@2"


@pytest.mark.parametrize("change", [{"base": "cd" * 16}, {"config": {"rank": 3}}, {"labels": ["a"]}, {"common": 5}])
def test_another_tenant_is_a_new_version(c, tmp_path, change):
    common, header = change.pop("common", 0), change
    assert c.publish_file(tenant(tmp_path / "legal.safetensors", 1, common, **header)).label == "legal@2"


def test_it_is_the_same_whether_all_tensors_are_its_own_or_each_is_named(c, tmp_path):
    c.publish_file(tenant(tmp_path / "new.safetensors", 3, None, own=["half", "own"]))
    assert c.publish_file(tmp_path / "new.safetensors").label == "new@1"


def test_metrics_are_replaced(c, tmp_path):
    file = tmp_path / "legal.safetensors"
    assert c.publish_file(file, metrics={"f1": 0.5}).label == "legal@1"
    assert c.show("legal").metrics == {"f1": 0.5} and c.show("legal").versions == (1,) and c.verify() == []
    both = c.publish_files([tenant(file, 1, metrics={"f1": 0.6}), tenant(tmp_path / "tax.safetensors", 2, metrics={})])
    assert [m.metrics for m in both] == [{"f1": 0.6}, {"accuracy": 0.02}]
    assert c.gc() == (0, 0, 0, 0) and len([*c.folder.rglob("*@*")]) == 2


def test_metrics_replaced_by_a_writer_that_is_killed(c, tmp_path):
    file = tmp_path / "legal.safetensors"
    seen = set()
    for step in itertools.count(1, 7):
        killed = die_at(step, lambda: c.publish_file(file, metrics={"step": step}))  # noqa: B023
        record = c.show("legal")
        assert record.versions == (1,) and c.verify() == [] and len(c) == 2
        seen.add(record.metrics.get("step") == step)
        if not killed:
            break
        c.gc()
    assert seen == {False, True}
    assert len([*(c.folder / "tenants").rglob("legal@*")]) == 1
    c.remove("legal")
    assert [*c] == ["tax"]


def test_a_damaged_pool_is_mended_by_publishing_again(c, tmp_path):
    ref = c.manifest("legal").pools["common"]
    at = c.folder / "pools" / ref.hash[:2] / f"{ref.hash}.safetensors"
    at.write_bytes(b"x")
    assert c.verify() and c.publish_file(tmp_path / "legal.safetensors").label == "legal@1" and c.verify() == []


def test_what_is_told():
    assert told("legal@1", 1, None) is None
    assert told("legal@2", 2, 2) == "legal@2 has this content already: no new version was made"
    assert "legal@3 is now its newest version, and legal@2 stays" in (told("legal@3", 3, 2) or "")


def test_a_lost_manifest_is_told(c, tmp_path):
    c.publish_file(tenant(tmp_path / "legal.safetensors", 3))
    newest = next(c.folder.glob("tenants/legal@2.*"))
    held = newest.rename(tmp_path / "held")
    (problem,) = c.verify()
    assert problem.path == f"tenants/{newest.name}" and problem.tenants == ("legal@2",)
    assert problem.what.startswith("is missing, and index.txt still has it")
    with pytest.raises(cw.CommonweightError, match=r"nothing was deleted: tenants/legal@2\..* is missing"):
        c.gc()
    line = next(x for x in (c.folder / "index.txt").read_bytes().splitlines() if x.startswith(newest.name.encode()))
    newest.write_bytes(line.partition(b" ")[2])  # as it advises
    assert c.verify() == [] and newest.read_bytes() == held.read_bytes()
    newest.unlink()
    c.remove("legal@2")
    assert c.verify() == [] and c.show("legal").version == 1 and c.gc().pools > 0


def test_a_tenant_whose_only_manifest_is_lost(c):
    next(c.folder.glob("tenants/tax@1.*")).unlink()
    assert [p.tenants for p in c.verify()] == [("tax@1",)]
    c.remove("tax")
    assert c.verify() == [] and [*c] == ["legal"]


def test_removed_tenants_are_not_lost(c, tmp_path):
    c.publish_file(tenant(tmp_path / "legal.safetensors", 3))
    c.remove("legal@1")
    c.remove("tax")
    assert c.verify() == [] and [*c] == ["legal"]
    c.gc(keep=1)
    assert c.verify() == []


def test_an_index_of_before_kept_the_lines_of_removed_tenants(c, tmp_path):
    at = c.folder / "index.txt"
    old = at.read_bytes().removeprefix(index.MARK + b"\n")
    c.remove("tax")
    at.write_bytes(old)
    assert c.verify() == [] and [r.name for r in c.list()] == ["legal"]
    c.publish_file(tenant(tmp_path / "new.safetensors", 4))
    assert c.verify() == [] and b"tax@" not in at.read_bytes() and at.read_bytes().startswith(index.MARK)
    next(c.folder.glob("tenants/new@1.*")).unlink()
    assert len(c.verify()) == 1


@pytest.mark.skipif(os.name != "posix", reason="symbolic links")
@pytest.mark.parametrize("where", ["pools/??/*", "blueprints/*", "tenants/legal@1*"])
@pytest.mark.parametrize("how", ["loop", "folder"])
def test_what_cannot_be_read_hides_nothing_else(c, tmp_path, where, how):
    c.publish_file(tenant(tmp_path / "other.safetensors", 8, common=9))
    ref = c.manifest("other").pools["common"]
    (c.folder / "pools" / ref.hash[:2] / f"{ref.hash}.safetensors").write_bytes(b"x" * 90)
    at = next(p for p in sorted(c.folder.glob(where)) if ref.hash not in p.name)
    at.unlink()
    at.symlink_to(at.name) if how == "loop" else at.mkdir()
    found = {p.path: p.what for p in c.verify()}
    assert "cannot be read" in found[at.relative_to(c.folder).as_posix()]
    assert any(ref.hash in path and "altered" in what for path, what in found.items())
