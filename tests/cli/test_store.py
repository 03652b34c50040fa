"""commonweight store: each command, its output, and how mistakes end."""

import json
import subprocess
import sys

import pytest

import commonweight as cw
from tests.cli.test_cli import call
from tests.commons.small import tenant
from tests.models import make


@pytest.fixture
def at(tmp_path, capsys):
    """A store with two tenants of one common pool."""
    folder = tmp_path / "store"
    assert call(capsys, "store", "init", folder) == (0, f"{folder}: a store of 0 tenants\n", "")
    for i, name in enumerate(("legal", "tax"), 1):
        assert call(capsys, "store", "publish", folder, tenant(tmp_path / f"{name}.safetensors", i))[0] == 0
    return folder


def test_publish_and_list(at, tmp_path, capsys):
    args = "--name", "legal", "--metric", "accuracy=0.95", "--metric", "f1=1", "--parent", "tax"
    code, out, said = call(capsys, "store", "publish", at, tmp_path / "tax.safetensors", *args)
    assert (code, out) == (0, "legal@2: 3 pools, 156 bytes\n")
    assert said == ("notice: legal existed with other content: legal@2 is now its newest version, and legal@1 stays\n")
    code, out, said = call(capsys, "store", "publish", at, tmp_path / "tax.safetensors", *args)
    assert (code, out) == (0, "legal@2: 3 pools, 156 bytes\n")
    assert said == "notice: legal@2 has this content already: no new version was made\n"
    code, out, _ = call(capsys, "store", "list", at)
    head, legal, tax = out.splitlines()
    assert code == 0 and head.split() == "name version method pools bytes marginal bytes metrics".split()
    record = cw.Commons(at).show("legal")
    assert legal.split() == [
        "legal", "2", "lora", "3", f"{record.nbytes:,}", f"{record.marginal_bytes:,}", "accuracy=0.95", "f1=1"
    ]  # fmt: skip
    assert tax.startswith("tax")
    (first, _) = json.loads(call(capsys, "store", "list", at, "--json")[1])
    assert first["marginal_bytes"] == record.marginal_bytes and first["pools"] == record.pools


def test_show_and_diff(at, capsys):
    code, out, _ = call(capsys, "store", "show", at, "legal")
    assert (
        code == 0
        and out.startswith("legal@1: lora, published ")
        and "accuracy=0.01" in out
        and "F32  30  common" in out
    )
    assert json.loads(call(capsys, "store", "show", at, "legal@1", "--json")[1])["tenant"]["method"] == "lora"
    code, out, _ = call(capsys, "store", "diff", at, "legal", "tax")
    assert code == 0 and out.splitlines() == [
        "legal@1 and tax@1: 1 tensor the same, 192 bytes in common",
        "  changed: half",
        "  changed: own",
        "  metrics.accuracy: 0.01 -> 0.02",
    ]
    assert json.loads(call(capsys, "store", "diff", at, "legal", "tax", "--json")[1])["same"] == ["common"]


def test_export_import_remove_gc(at, tmp_path, capsys):
    out = tmp_path / "out.safetensors"
    assert call(capsys, "store", "export", at, "legal", out)[0] == 0
    assert call(capsys, "store", "export", at, "legal", out)[0] == 2
    assert call(capsys, "store", "export", at, "legal", out, "--overwrite")[0] == 0
    assert call(capsys, "store", "export", at, "legal", out.parent / "new" / "folder" / "out.safetensors")[0] == 0
    assert out.read_bytes() == (tmp_path / "legal.safetensors").read_bytes()
    tenant(tmp_path / "tax.safetensors", 9)
    assert call(capsys, "store", "import", at, out, tmp_path / "tax.safetensors")[0] == 0
    assert [*cw.Commons(at)] == ["legal", "out", "tax"]
    assert call(capsys, "store", "remove", at, "legal")[:2] == (0, "removed legal\n")
    assert call(capsys, "store", "remove", at, "out")[0] == 0
    code, said, _ = call(capsys, "store", "gc", at, "--keep", "1")
    assert code == 0 and "2 pools, 1 version, 0 torn files" in said
    code, said, _ = call(capsys, "store", "verify", at)
    assert code == 0 and said.startswith(f"{at}: sound, 1 tenant")


def test_import_takes_all_or_none(at, tmp_path, capsys):
    files = [tenant(tmp_path / f"{n}.safetensors", i, common=7) for i, n in enumerate(("legal", "new"))]
    (tmp_path / "bad.safetensors").write_bytes(files[0].read_bytes()[:-4])
    before = cw.Commons(at).list()
    code, out, err = call(capsys, "store", "import", at, *files, tmp_path / "bad.safetensors")
    assert (code, out) == (2, "") and "bad.safetensors: not a whole" in err and cw.Commons(at).list() == before
    code, out, _ = call(capsys, "store", "import", at, *files)
    assert code == 0 and [line.split(":")[0] for line in out.splitlines()] == ["legal@2", "new@1"]


def test_verify_names_what_is_damaged(at, capsys):
    ref = cw.Commons(at).manifest("tax").pools["own"]
    (at / "pools" / ref.hash[:2] / f"{ref.hash}.safetensors").unlink()
    code, out, _ = call(capsys, "store", "verify", at)
    assert code == 1 and ref.hash in out and "missing" in out and "(tenants: tax@1)" in out


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("show", "lega"), "unknown tenant 'lega'; did you mean 'legal'"),
        (("show", "../legal"), "cannot be a tenant's name"),
        (("remove", "legal@4"), "legal has no version '4'; there are 1"),
        (("export", "legal", "{file}"), "legal.safetensors: a file already exists; --overwrite replaces it"),
        (("export", "legal", "{file}/x.safetensors"), "legal.safetensors is a file; wanted a folder"),
        (("publish", "nothing.safetensors"), "nothing.safetensors: no such file"),
        (("publish", "nothing.safetensors", "--metric", "accuracy"), "--metric accuracy: wanted a name and a number"),
        (("gc", "--keep", "0"), "keep=0: wanted 1 or more"),
    ],
)
def test_mistakes(at, capsys, args, message):
    args = [a.replace("{file}", str(at.parent / "legal.safetensors")) for a in args]
    code, out, err = call(capsys, "store", args[0], at, *args[1:])
    assert code == 2 and message in err and err.count("\n") == 1 and not out


def test_no_store_is_made_by_looking(tmp_path, capsys):
    for command in ("list", "verify", "gc"):
        code, _, err = call(capsys, "store", command, tmp_path / "none")
        assert code == 2 and "is not a store; `commonweight store init` makes one" in err
    assert not (tmp_path / "none").exists()


def test_listing_does_not_load_torch(at):
    code = (
        "import sys; from commonweight.cli import main\n"
        f"for c in (['list', {str(at)!r}], ['show', {str(at)!r}, 'tax'], ['verify', {str(at)!r}]):\n"
        "    try: main(['store', *c])\n"
        "    except SystemExit as e: assert not e.code\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_what_is_stood_on_is_not_removed(tmp_path, capsys):
    host = cw.Host(make("llama")[0])
    for n in "ab":
        host.add(n, "lora", rank=2)
    host.add("both", "lorahub", over=["a", "b"])
    cw.Commons(tmp_path / "s").publish_all(host, ["a", "b", "both"])
    code, _, told = call(capsys, "store", "remove", tmp_path / "s", "a")
    assert code == 2 and "a@1 cannot be removed: both stands on it; remove that first" in told
    code, said, _ = call(capsys, "store", "show", tmp_path / "s", "both")
    assert code == 0 and "parents: a@1, b@1" in said
    assert call(capsys, "store", "remove", tmp_path / "s", "both")[0] == 0
    assert call(capsys, "store", "remove", tmp_path / "s", "a")[0] == 0
