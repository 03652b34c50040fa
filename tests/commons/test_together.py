"""Many processes at once, and processes that are killed at every line."""

import itertools
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

import commonweight as cw
from commonweight.commons import index, pool
from tests.commons.small import contents, die_at, ended, start, tenant
from tests.drawn import TIMES

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
NEXT = 1 if TIMES else 3  # a process is killed at each so many lines; at every one by `make fuzz`


def test_a_publish_killed_at_any_line_leaves_the_old_state(tmp_path):
    c = cw.Commons(tmp_path / "store")
    c.publish_file(tenant(tmp_path / "legal.safetensors", 1))
    c.publish_file(tenant(tmp_path / "tax.safetensors", 2))
    tax, states = contents(c, "tax"), {c.show("legal").version: contents(c, "legal")}
    committed = kills = 0
    for step in itertools.count(1, NEXT):
        file = tenant(tmp_path / "legal.safetensors", step + 10)
        killed = die_at(step, lambda: c.publish_file(file))  # noqa: B023
        kills += killed
        again = cw.Commons(c.folder)
        assert again.verify() == [] and contents(again, "tax") == tax
        version = again.show("legal").version
        if version in states:
            assert contents(again, "legal") == states[version]
        else:  # killed after the one moment at which it happens
            committed += 1
            assert version == max(states) + 1 and contents(again, "legal") not in states.values()
            states[version] = contents(again, "legal")
        if not killed:
            break
        if kills % 10 == 0:
            again.gc(keep=2)
            assert not [p for p in c.folder.rglob(".*") if p.is_file()]  # what killed writers left is gone
    assert kills > 150 // NEXT and committed > 1


def test_several_at_once_killed_at_any_line_are_all_there_or_none(tmp_path):
    c = cw.Commons(tmp_path / "store")
    names = ("legal", "tax", "new")
    for name in names[:2]:
        c.publish_file(tenant(tmp_path / f"{name}.safetensors", 1))
    said = {n: contents(c, n) for n in names[:2]}
    committed = kills = 0
    for step in itertools.count(1, 3 * NEXT):
        files = [tenant(tmp_path / f"{n}.safetensors", step * 10 + i, common=step) for i, n in enumerate(names)]
        killed = die_at(step, lambda: c.publish_files(files))  # noqa: B023
        kills += killed
        assert c.verify() == []
        now = {n: contents(c, n) for n in c}
        if now != said:  # after the one moment at which it happens
            committed += 1
            assert now.keys() == {*names} and not any(now[n] == said.get(n) for n in names)
            assert len({now[n]["common"] for n in names}) == 1
            said = now
        if not killed:
            break
        if kills % 5 == 1:
            c.gc(keep=2)
            assert not [p for p in c.folder.rglob(".*")] and c.verify() == []
    assert kills > 60 // NEXT and committed > 1
    for name in names:
        c.remove(name)
    c.gc()
    assert c.list() == [] and c.nbytes == 0 and not [*(c.folder / "tenants").iterdir()]


def test_remove_and_gc_killed_at_any_line(tmp_path):
    c = cw.Commons(tmp_path / "store")
    c.publish_file(tenant(tmp_path / "tax.safetensors", 2))
    tax, file = contents(c, "tax"), tenant(tmp_path / "legal.safetensors", 1)
    other = tenant(tmp_path / "other.safetensors", 3)

    def leave() -> None:
        c.remove("legal")
        c.gc()

    for step in itertools.count(1, 2 * NEXT):
        if "legal" not in c:
            c.publish_file(file)
            c.publish_file(other, "legal")
        killed = die_at(step, leave)
        assert c.verify() == [] and contents(c, "tax") == tax
        assert "legal" not in c or contents(c, "legal")
        if not killed:
            break
    assert step > 100 and c.gc().pools == 0 and [*c] == ["tax"]


def test_init_killed_at_any_line(tmp_path):
    for step in itertools.count(1, 2):
        folder = tmp_path / f"store{step}"
        killed = die_at(step, lambda: cw.Commons(folder))  # noqa: B023
        assert cw.Commons(folder).list() == []
        if not killed:
            break
    assert step > 20


def test_eight_publishers_lose_nothing(tmp_path):
    folder = tmp_path / "store"
    for n in range(24):
        tenant(tmp_path / f"{n}.safetensors", n)

    def work(i: int) -> None:
        c = cw.Commons(folder)  # they make it at once, too
        for n in range(i, 24, 8):
            c.publish_file(tmp_path / f"{n}.safetensors", "all")
            c.publish_file(tmp_path / f"{n}.safetensors", f"t{i}")

    assert ended(*[start(lambda i=i: work(i)) for i in range(8)]) == [0] * 8
    c = cw.Commons(folder)
    assert c.verify() == [] and [*c] == ["all", *(f"t{i}" for i in range(8))]
    assert c.show("all").versions == tuple(range(1, 25))
    assert all(r.versions == (1, 2, 3) for r in c.list()[1:])
    found = sorted(c.manifest(f"all@{v}").metrics["accuracy"] for v in range(1, 25))
    assert found == [i / 100 for i in range(24)]
    assert len([*folder.glob("pools/??/*")]) == 24 + 1
    assert len((folder / "index.txt").read_bytes().splitlines()) == 1 + 48


def test_gc_takes_nothing_from_publishers_and_readers(tmp_path):
    c = cw.Commons(tmp_path / "store")
    c.publish_file(tenant(tmp_path / "hot.safetensors", 0))
    until = time.monotonic() + 1.5

    def publish() -> None:
        for seed in itertools.count(1):
            c.publish_file(tenant(tmp_path / "hot.safetensors", seed, common=seed % 2))
            if time.monotonic() > until:
                return

    def collect() -> None:
        while time.monotonic() < until:
            c.gc(keep=1)

    def read() -> None:
        while time.monotonic() < until:
            got = contents(c, "hot")
            assert len(got) == 3 and c.list()[0].name == "hot" and c.show("hot").version

    def check() -> None:
        while time.monotonic() < until:
            assert c.verify() == []

    assert ended(*map(start, (publish, collect, read, read, check))) == [0] * 5
    assert c.verify() == [] and contents(c, "hot")


def test_a_gc_between_two_looks_makes_nothing_lost(tmp_path, monkeypatch):
    """Whoever writes may be between index and manifest: what looks lost counts only where nobody writes."""
    c = cw.Commons(tmp_path / "store")
    c.publish_file(tenant(tmp_path / "hot.safetensors", 0))
    for looks, want in (([{}, {"hot@1.0.json": b""}], []), ([{"hot@1.0.json": b""}, {}], [])):
        left = iter(looks)
        monkeypatch.setattr(index, "lost", lambda *_, left=left: next(left))
        assert c.verify() == want


def test_a_reader_between_manifest_and_pools(tmp_path, monkeypatch):
    c = cw.Commons(tmp_path / "store")
    c.publish_file(tenant(tmp_path / "hot.safetensors", 0))
    plain, calls = pool.open_pool, []

    def late(root, hash):
        calls.append(hash)
        if len(calls) == 2:  # the reader has one pool open, the other it has not
            c.publish_file(tenant(tmp_path / "hot.safetensors", 1, common=1))
            c.gc(keep=1)
        return plain(root, hash)

    monkeypatch.setattr(pool, "open_pool", late)
    got = c.fetch("hot")
    assert got.where.endswith("hot@2") and len(calls) == 4 and got.read("own").shape == (6,)
    c.remove("hot")
    c.gc()
    assert got.read("half").shape == (2, 3)  # what is open stays readable


def test_a_killed_holder_frees_the_lock(tmp_path):
    c = cw.Commons(tmp_path / "store")
    read, write = os.pipe()

    def hold() -> None:
        with c._locked():
            os.write(write, b"x")
            time.sleep(60)

    pid = start(hold)
    os.read(read, 1)
    with pytest.raises(cw.CommonweightError, match=r"another process has been writing for 0\.05 s; try again"):
        with c._locked(0.05):
            pass
    os.kill(pid, signal.SIGKILL)
    assert ended(pid) == [-signal.SIGKILL]
    c.publish_file(tenant(tmp_path / "hot.safetensors", 0))
    os.close(read), os.close(write)


def test_a_store_that_can_only_be_read(tmp_path, monkeypatch):
    c = cw.Commons(tmp_path / "store")
    c.publish_file(tenant(tmp_path / "hot.safetensors", 0))

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("filelock.FileLock.acquire", refuse)
    assert contents(c, "hot") and c.list() and c.verify() == []
    with pytest.raises(cw.CommonweightError, match="store: cannot be written: Permission denied"):
        c.remove("hot")
    next(c.folder.glob("pools/??/*")).unlink()
    with pytest.raises(cw.CommonweightError, match="this pool is missing"):
        c.fetch("hot")


def test_threads_of_one_process(tmp_path):
    c = cw.Commons(tmp_path / "store")
    files = [[tenant(tmp_path / f"{i} {n}.safetensors", 10 * i + n) for n in range(5)] for i in range(4)]
    with ThreadPoolExecutor(4) as pool_:
        list(pool_.map(lambda some: [c.publish_file(f, "all") for f in some], files))
    assert c.show("all").versions == tuple(range(1, 21)) and c.verify() == []
