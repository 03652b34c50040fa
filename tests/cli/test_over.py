"""commonweight adapt --over: a tenant that weighs others, of a store or of files."""

import json

import pytest

import commonweight as cw
from commonweight.adapt import open_host, read_tenants
from tests.adapt import tiny
from tests.cli.test_cli import call
from tests.laws.subjects import stir

LITTLE = ("--epochs", "1", "--batch-size", "8", "--dtype", "float32")


@pytest.fixture
def at(tmp_path, bert):
    """A store and files of two LoRA tenants a and b, and rows."""
    host = open_host(bert, dtype="float32")
    store = cw.Commons(tmp_path / "shop")
    for i, n in enumerate("ab"):
        stir(host.add(n, "lora", rank=2, labels=["law", "sport"]), i)
        host.save(n, tmp_path / f"{n}.safetensors")
        store.publish(host, n)
    tiny.jsonl(tmp_path / "rows.jsonl", tiny.rows(16))
    return tmp_path


def test_of_a_store(at, bert, capsys):
    store = at / "shop"
    args = ("adapt", bert, at / "rows.jsonl", "-m", "XLORA", "--over", "a,b@1", "-o", "hidden=4", *LITTLE)
    code, out, err = call(capsys, *args, "--store", store, "--tenant", "both", "--eval", at / "rows.jsonl")
    assert code == 0, err
    assert "over a, b@1, which are frozen" in err and "both@1: xlora, " in out and out.startswith("accuracy")
    found = cw.Commons(store).show("both")
    assert found.parents == ("a@1", "b@1")
    host = open_host(bert, dtype="float32")
    tenant = host.load_from(cw.Commons(store), "both")
    assert len(tenant.over) == 2 and list(host) == ["both"] and tenant.config.hidden == 4
    code, _, err = call(capsys, *args, "--store", store, "--tenant", "dry", "--dry-run")
    assert code == 0 and "over a, b@1" in err and "dry" not in cw.Commons(store).newest()


def test_of_files(at, bert, capsys):
    (at / "both.yaml").write_text(
        "data: rows.jsonl\nmethod: psec\nhidden: 4\nover: [a.safetensors, b.safetensors]\nepochs: 1\ndtype: float32\n"
    )
    code, out, err = call(capsys, "adapt", bert, "--config", at / "both.yaml", "--out", at / "both.safetensors")
    assert code == 0 and "psec, " in out, err
    report = json.loads((at / "both.json").read_bytes())
    assert [o.rpartition("/")[2] for o in report["over"]] == ["a.safetensors", "b.safetensors"]
    assert len(report["settings"]["over"]) == 2
    host = open_host(bert, dtype="float32")
    for n in "ab":
        host.load(n, at / f"{n}.safetensors")
    host.load("both", at / "both.safetensors")


def test_several_that_stand_on_the_same(at, bert, capsys):
    (at / "tenants.yaml").write_text(
        "method: psec\noptions: {hidden: 4}\nover: [a, b]\ndtype: float32\nrecipe: {epochs: 1, batch_size: 8}\n"
        "tenants:\n  c: {data: rows.jsonl}\n  d: {data: rows.jsonl}\n"
    )
    assert read_tenants(at / "tenants.yaml").over == ("a", "b")
    code, _, err = call(capsys, "adapt", bert, "--tenants", at / "tenants.yaml", "--store", at / "shop")
    assert code == 0, err
    assert all(cw.Commons(at / "shop").show(n).parents == ("a@1", "b@1") for n in "cd")


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (("-m", "psec", "--store", "{shop}"), "psec weighs other tenants, and is told which: adapt --over NAME,NAME"),
        (("-m", "lora", "--over", "a", "--store", "{shop}"), "lora weighs no other tenants; methods that do: arrow"),
        (("--over", "a", "--store", "{shop}"), "mos weighs no other tenants"),
        (("-m", "psec", "--over", "a,z", "--store", "{shop}"), "unknown tenant 'z'"),
        (("-m", "psec", "--over", "a@7", "--store", "{shop}"), "a has no version '7'"),
        (("-m", "psec", "--over", "a,a@1", "--store", "{shop}"), "two tenants are called 'a'"),
        (("-m", "psec", "--over", "a,", "--store", "{shop}"), "'' cannot be a tenant's name"),
        (("-m", "psec", "--over", "a,t", "--store", "{shop}"), "'t' cannot stand on itself"),
        (("-m", "psec", "--over", "a", "--sites", "*", "--store", "{shop}"), "--sites: psec reads what its tenants"),
        (("-m", "psec", "--over", "a", "-o", "hiden=3", "--store", "{shop}"), "did you mean 'hidden'"),
        (("-m", "psec", "--over", "a", "--out", "x.safetensors"), "'a' is no file; to files go tenants over files"),
        (("-m", "psec", "--over", "no.safetensors", "--out", "x.safetensors"), "over: no.safetensors: no such file"),
        (("-m", "psec", "--over", "{shop}/../a.safetensors", "--store", "{shop}"), "is a file, and a store keeps"),
    ],
)
def test_mistakes(at, bert, capsys, more, told):
    args = [a.replace("{shop}", str(at / "shop")) for a in more]
    code, out, err = call(capsys, "adapt", bert, at / "rows.jsonl", *args, "--tenant", "t", *LITTLE)
    assert code == 2 and told in err and not out


def test_they_are_listed(capsys):
    code, out, _ = call(capsys, "methods", "--over")
    assert code == 0 and all(n in out for n in cw.methods.OVER.available()) and "vb-lora" not in out
    code, out, _ = call(capsys, "methods", "psec")
    assert code == 0 and "weighs other tenants" in out and "hidden" in out


def test_mistakes_in_a_file(at, bert, capsys):
    text = "tenants:\n  c: {data: rows.jsonl}\n"
    for line, told in (
        ("over: 3\nmethod: psec\n", "over is 3; wanted tenants"),
        ("over: [a]\n", "mos weighs no other"),
        ("method: psec\n", "psec weighs other tenants, and is told which"),
        ("method: psec\nover: [a]\nsites: '*'\n", "sites: psec reads what its tenants read"),
    ):
        (at / "t.yaml").write_text(line + text)
        code, _, err = call(capsys, "adapt", bert, "--tenants", at / "t.yaml", "--store", at / "shop")
        assert code == 2 and told in err and "t.yaml, line" in err, err
