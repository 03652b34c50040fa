"""Machine code of the loops: made once, kept whole, done without where that cannot be."""

from __future__ import annotations

import subprocess
import sys

import pytest

from commonweight.merge.loops import load
from commonweight.merge.loops.calls import whole


@pytest.fixture
def apart(monkeypatch, tmp_path):
    """A cache of this test's own, with a process that makes something quickly in place of the loops."""
    pytest.importorskip("numba")
    llvm = pytest.importorskip("llvmlite.binding")
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    load._loops.cache_clear()
    made = []

    def run(command, **how):
        from pathlib import Path

        made.append(command)
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        target = llvm.Target.from_triple(llvm.get_process_triple()).create_target_machine(codemodel="jitdefault")
        for i, name in enumerate(load.NAMES):
            text = f"define i64 @{name}(ptr %x) {{ ret i64 {40 + i} }}"
            (Path(command[-1]) / name).write_bytes(target.emit_object(llvm.parse_assembly(text)))
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(load.subprocess, "run", run)
    yield made
    load._loops.cache_clear()


def again(numbers=load.WORTH):
    load._loops.cache_clear()
    return load.loops(numbers)


def test_they_are_made_once_and_then_read(apart, tmp_path):
    first, second = again(), again()
    assert len(apart) == 1
    assert first is not None and second is not None
    said = [[found[n](whole([0])) for n in load.NAMES] for found in (first, second)]
    assert said[0] == said[1] == [40 + i for i in range(len(load.NAMES))]
    assert len(list((tmp_path / "commonweight").iterdir())) == len(load.NAMES)


@pytest.mark.parametrize("damage", [b"", b"\0" * 64])
def test_a_damaged_file_is_made_anew(apart, tmp_path, damage):
    again()
    next((tmp_path / "commonweight").iterdir()).write_bytes(damage)
    assert again() is not None and len(apart) == 2


def test_other_sources_or_another_processor_have_their_own_files(apart, monkeypatch):
    import llvmlite.binding as llvm

    again()
    monkeypatch.setattr(llvm, "get_host_cpu_name", lambda: "other")
    again()
    assert len(apart) == 2


def test_small_merges_do_not_wait_for_them(apart):
    assert again(load.WORTH - 1) is None and not apart
    assert again(load.WORTH) is not None
    assert again(load.WORTH - 1) is not None and again(load.LEAST - 1) is None


def test_a_switch_decides(apart, monkeypatch):
    monkeypatch.setenv(load.SWITCH, "off")
    assert again() is None
    monkeypatch.setenv(load.SWITCH, "on")
    assert again(1) is not None


def test_a_folder_that_cannot_be_written_only_costs_time(apart, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "file"))
    assert again() is not None and again() is not None
    assert len(apart) == 2


def test_without_numba_there_are_none(apart, monkeypatch):
    monkeypatch.setitem(sys.modules, "llvmlite.binding", None)
    assert again() is None and not apart


def test_what_cannot_be_made_is_told_and_done_without(apart, monkeypatch):
    failed = subprocess.CompletedProcess([], 1, "", "Traceback\nRuntimeError: no such processor")
    monkeypatch.setattr(load.subprocess, "run", lambda *a, **k: failed)
    with pytest.warns(UserWarning, match="goes on without compiled loops.*no such processor"):
        assert again() is None


def test_the_names_are_those_of_the_loops():
    pytest.importorskip("numba")
    from commonweight.merge.loops.kernel import LOOPS

    assert list(LOOPS) == load.NAMES
