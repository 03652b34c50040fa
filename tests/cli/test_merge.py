"""commonweight merge, as a user types it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from commonweight.cli import main


@pytest.fixture
def two(tmp_path, monkeypatch):
    for i in range(3):
        (tmp_path / f"m{i}").mkdir()
        g = torch.Generator().manual_seed(i)
        save_file({"layers.0.w": torch.randn(6, 4, generator=g)}, tmp_path / f"m{i}" / "model.safetensors")
    (tmp_path / "m0" / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)


def run(*args: str) -> int:
    try:
        main(["merge", *args])
    except SystemExit as e:
        return int(e.code or 0)
    return 0


def test_a_recipe_and_its_options_give_the_same(two, capsys):
    Path("r.yaml").write_text("method: ties\nbase: m0\nmodels: [m1, m2]\nweights: [1, 0.5]\noptions: {density: 0.5}\n")
    assert run("r.yaml", "--plan") == 0
    assert "ties (density=0.5" in capsys.readouterr().out and not Path("a").exists()
    assert run("r.yaml", "--out", "a") == 0
    assert "a: 1 tensor" in capsys.readouterr().out
    options = ["--method", "ties", "--base", "m0", "m1", "m2", "-w", "1", "-w", "0.5", "-o", "density=0.5"]
    assert run(*options, "--out", "b", "--threads", "1", "--resume") == 0
    assert "nothing to resume" in capsys.readouterr().err
    assert torch.equal(load_file("a/model.safetensors")["layers.0.w"], load_file("b/model.safetensors")["layers.0.w"])
    assert json.loads(Path("a/merge.json").read_text())["inputs"].keys() == {"m0", "m1", "m2"}


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["r.yaml", "--out", "o"], "r.yaml: no such recipe"),
        (["m1", "--method", "tie", "--out", "o"], "did you mean 'ties'"),
        (["m1", "--method", "linear"], "--out is missing"),
        (["m1", "--method", "linear", "-o", "x", "--out", "o"], "wanted a name and a value"),
        (["m1", "--method", "linear", "-o", "normalise=true", "--out", "o"], "did you mean 'normalize'"),
        (["m1", "m2", "--out", "o"], "2 inputs and no --method"),
        (["r.yaml", "--base", "m0", "--out", "o"], "go with --method"),
        (["m1", "--method", "linear", "--shard-size", "many", "--out", "o"], "wanted a size like 5GB"),
        (["m1", "--method", "linear", "--threads", "0", "--out", "o"], "--threads is 0"),
        (["m1", "--method", "linear", "--out", "m2"], "m2 already exists"),
        (["m1", "m9", "--method", "linear", "--out", "o"], "m9: no such file or folder"),
    ],
)
def test_mistakes_end_in_one_line_and_code_2(args, message, two, capsys):
    assert run(*args) == 2
    err = capsys.readouterr().err
    assert message in err and "Traceback" not in err and not Path("o").exists()
    assert not list(Path().glob(".*"))


def test_resume_of_a_merge_that_had_ended(two, capsys):
    """A kill after the last rename: nothing is left to do, which is no mistake."""
    args = ["m1", "m2", "--method", "linear", "--out", "a"]
    assert run(*args) == 0
    before = {f: (f.stat().st_mtime_ns, f.read_bytes()) for f in Path("a").iterdir()}
    assert run(*args, "--resume") == 0
    said = capsys.readouterr()
    assert "a: is finished; nothing is left to do" in said.err and "a: 1 tensor, 1 of them from before" in said.out
    assert before == {f: (f.stat().st_mtime_ns, f.read_bytes()) for f in Path("a").iterdir()}
    path = Path("m2/model.safetensors")
    was, size = path.stat(), path.stat().st_size
    os.utime(path, ns=(was.st_atime_ns, was.st_mtime_ns - 10**9))  # another file, and an older one
    assert path.stat().st_size == size and run(*args, "--resume") == 2
    os.utime(path, ns=(was.st_atime_ns, was.st_mtime_ns))
    assert run(*args, "--resume") == 0
    capsys.readouterr()
    others = (["m1", "m0", *args[2:]], [*args, "--dtype", "bfloat16"], [*args, "-w", "1", "-w", "2"])
    for other in others:
        assert run(*other, "--resume") == 2 and "a already exists" in capsys.readouterr().err
    assert run(*args) == 2 and "a already exists" in capsys.readouterr().err
    Path("a/merge.json").write_text("{")
    assert run(*args, "--resume") == 2 and "a already exists" in capsys.readouterr().err


def test_overwrite_replaces_a_model_whole(two, capsys):
    args = ["m1", "m2", "--method", "linear", "--out", "a"]
    assert run(*args) == 0
    old = Path("a/model.safetensors").read_bytes()
    Path("a/note.txt").write_text("of before")
    assert run(*args, "-w", "3", "-w", "1") == 2 and "replace it with --overwrite" in capsys.readouterr().err
    assert Path("a/model.safetensors").read_bytes() == old
    assert run("m1", "m9", "--method", "linear", "--out", "a", "--overwrite") == 2
    assert Path("a/model.safetensors").read_bytes() == old, "a merge that ends in an error replaces nothing"
    assert run(*args, "-w", "3", "-w", "1", "--overwrite") == 0
    assert Path("a/model.safetensors").read_bytes() != old and not Path("a/note.txt").exists()
    assert not list(Path().glob(".a*")), "neither the old folder nor the unfinished one stays"


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("m1", "m1: holds m1/model.safetensors, which is read for the merge"),
        ("notes", "notes: not empty and no model's folder; it is not replaced"),
        ("file", "file is a file; wanted the name of a folder"),
        (".", "which is read for the merge"),
    ],
)
def test_what_overwrite_does_not_replace(out, message, two, capsys):
    Path("notes").mkdir()
    Path("notes/a.txt").touch()
    Path("file").touch()
    Path("config.json").write_text("{}")
    assert run("m1", "m2", "--method", "linear", "--out", out, "--overwrite") == 2
    assert message in capsys.readouterr().err and Path("m1/model.safetensors").is_file()


def test_a_recipe_is_not_replaced_by_its_result(two, capsys):
    assert run("m1", "m2", "--method", "linear", "--out", "a") == 0
    Path("a/r.yaml").write_text("method: linear\nmodels: [../m1, ../m2]\n")
    assert run("a/r.yaml", "--out", "a", "--overwrite") == 2
    assert "a: holds a, which is read for the merge" in capsys.readouterr().err and Path("a/r.yaml").is_file()


def test_extract_into_a_folder_that_is_there(two, capsys):
    """The advice is one that the command line has."""
    Path("there").mkdir()
    Path("there/x").touch()
    with pytest.raises(SystemExit) as e:
        main(["extract", "m1", "--base", "m0", "--out", "there"])
    err = capsys.readouterr().err
    assert e.value.code == 2 and "there already exists; choose another name, or replace it with --overwrite" in err
    with pytest.raises(SystemExit) as e:
        main(["extract", "m1", "--base", "m0", "--out", "there", "--overwrite"])
    assert e.value.code == 2 and "there: not empty and no adapter folder" in capsys.readouterr().err
    assert Path("there/x").is_file()
