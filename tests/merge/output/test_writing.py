"""A disk that is full, wherever it is told: a message with the file, and a merge that --resume finishes."""

from __future__ import annotations

import errno
import json
import os
import resource
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import commonweight as cw
from commonweight.merge.output import journal, shards
from commonweight.merge.plan.files import Shard
from tests.cli.test_merge import run

ARGS = ["m", "m", "--method", "linear", "--threads", "1", "--out", "out"]


@pytest.fixture
def model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("m").mkdir()
    save_file({f"layers.{i}.w": torch.randn(40, 40) for i in range(4)}, "m/model.safetensors")
    return load_file("m/model.safetensors")


def goes_on(model, capsys):
    assert Path(".out.merging").is_dir() and not Path("out").exists()
    assert run(*ARGS, "--resume") == 0
    assert all(torch.equal(t, model[n]) for n, t in load_file("out/model.safetensors").items())
    assert "tensors were finished" in capsys.readouterr().err


def test_while_the_journal_is_written(model, capsys, monkeypatch):
    """The file has its room; the line that says that a tensor is done has not, but for its first half."""
    write, left = os.write, [3]

    def full(fd, data):
        left[0] -= 1
        if left[0] > 0:
            return write(fd, data)
        if left[0] == 0:
            return write(fd, data[: len(data) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as m:
        m.setattr(journal.os, "write", full)
        assert run(*ARGS) == 2
    err = capsys.readouterr().err
    assert ".out.merging/journal.jsonl: no space left; make room, then the same command with --resume goes on" in err
    goes_on(model, capsys)


def test_a_line_written_in_two_parts_is_whole(tmp_path, monkeypatch):
    from commonweight.merge.stream.engine import Done

    write = os.write
    monkeypatch.setattr(journal.os, "write", lambda fd, data: write(fd, data[:5]))
    made = journal.Journal(tmp_path, "key", fresh=True)
    done = [Done(f"t{i}", ("a", "b"), "c", "d") for i in range(3)]
    for d in done[:2]:
        made.add(d)
    made.close()
    monkeypatch.undo()
    with open(tmp_path / journal.NAME, "ab") as f:
        f.write(b'{"tensor": "to')  # of a process that was killed
    again = journal.Journal(tmp_path, "key", fresh=False)
    again.add(done[2])
    again.close()
    assert list(journal.Journal(tmp_path, "key", fresh=False).done.values()) == done
    assert all(json.loads(line) for line in (tmp_path / journal.NAME).read_text().splitlines())


def test_a_limit_of_the_size_of_files(model, capsys):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        assert run(*ARGS) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    err = capsys.readouterr().err
    assert ".out.merging/model.safetensors: no space left; a file may not become as large here (ulimit -f" in err
    assert run(*ARGS, "--resume") == 0 and Path("out").is_dir()


def test_while_it_is_brought_to_the_disk(model, capsys, monkeypatch):
    def full(fd):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as m:
        m.setattr(shards.os, "fsync", full)
        assert run(*ARGS) == 2
    assert ".out.merging/model.safetensors: no space left; make room" in capsys.readouterr().err
    goes_on(model, capsys)


def test_in_the_thread_that_does_so_on_the_way(tmp_path, monkeypatch):
    def broken(fd):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(shards.os, "fdatasync", broken)
    plan = Shard("a.safetensors", {"w": (torch.float32, (2,))}, b"12345678", 16)
    sink = shards.Shards(tmp_path, [plan])
    sink._wake.set()
    sink._flusher.join()
    with pytest.raises(OSError, match=r"Input/output error: .*a\.safetensors"):
        sink.seal("")
    sink.close()


def test_other_errors_have_the_file_s_name():
    from commonweight.merge.output.writing import writing

    with pytest.raises(OSError, match="Input/output error: 'here'"), writing(Path("here")):
        raise OSError(errno.EIO, "Input/output error")
    with pytest.raises(cw.CommonweightError, match="here: no space left; make room"), writing(Path("here")):
        raise OSError(errno.EDQUOT, "Disk quota exceeded")


@pytest.mark.parametrize("what", ["merge.json", "README.md"])
def test_in_the_last_step(what, model, capsys, monkeypatch):
    """All weights are there; the record, or the card, has no room."""
    from commonweight.formats import atomic

    make = atomic.tempfile.mkstemp

    def full(prefix, **how):
        if what in prefix:
            raise OSError(errno.ENOSPC, "No space left on device")
        return make(prefix=prefix, **how)

    with monkeypatch.context() as m:
        m.setattr(atomic.tempfile, "mkstemp", full)
        assert run(*ARGS) == 2
    err = capsys.readouterr().err
    assert f"{what}: cannot write" in err and "all weights are written: the same command with --resume" in err
    goes_on(model, capsys)


def test_an_output_that_appears_meanwhile(model, capsys, monkeypatch):
    from commonweight.merge.output import card, folder

    with monkeypatch.context() as m:
        m.setattr(folder.card, "beside", lambda built, part: (card.beside, Path("out").mkdir())[1])
        assert run(*ARGS) == 2
    assert "out: appeared while it was being made; move it" in capsys.readouterr().err
    Path("out").rmdir()
    goes_on(model, capsys)
