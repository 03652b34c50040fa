"""Disk to disk: the same bits as in memory, whole or not there, and the same bytes after a kill anywhere."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import commonweight as cw
from commonweight.merge.output import folder, shards
from commonweight.merge.plan.files import EMPTY
from commonweight.merge.recipe import load
from commonweight.merge.recipe.build import build
from commonweight.merge.sources.opened import is_tenant
from commonweight.merge.stream import engine, grid
from tests import apart

from ..sample import models

SHAPES = {"embed.weight": (50, 16), "layers.0.w": (16, 24), "layers.1.w": (16, 24), "layers.1.bias": (24,), "s": ()}
SLOW = {"doge", "wudi"}
NEEDED = {"nearswap": {"t": 0.05}, "emr": {"task": 1}, "tall_masks": {"task": 1}}


def save(path: Path, state, files: int = 2) -> None:
    path.mkdir(parents=True)
    names = sorted(state)
    per = -(-len(names) // files)
    for i in range(files):
        part = {n: state[n].bfloat16() for n in names[i * per : (i + 1) * per]}
        save_file(part, path / f"model-{i + 1:05}-of-{files:05}.safetensors")
    (path / "config.json").write_text(json.dumps({"model_type": "x", "torch_dtype": "bfloat16"}))


def read(path: Path):
    out = {}
    for file in sorted(path.glob("*.safetensors")):
        with safe_open(file, "pt") as f:
            out.update({k: f.get_tensor(k) for k in f.keys()})
    return out


def bytes_of(path: Path) -> dict[str, str]:
    return {
        str(p.relative_to(path)): hashlib.sha256(p.read_bytes()).hexdigest() for p in path.rglob("*") if p.is_file()
    }


@pytest.fixture
def three(tmp_path, monkeypatch):
    base, others = models(4, shapes=SHAPES)
    for i, state in enumerate([base, *others]):
        save(tmp_path / f"m{i}", state)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def recipe(method, **more):
    m = cw.merge.get(method)
    n = m.models[1] or 4
    body = {"method": method, "models": [f"m{i + 1}" for i in range(n)], "options": NEEDED.get(method, {}), **more}
    return body if m.base == "none" else {**body, "base": "m0"}


@pytest.mark.parametrize(
    "method", [m.name for m in cw.merge.available().values() if m.data == "none" and m.name not in SLOW]
)
def test_a_folder_has_the_bits_of_the_merge_in_memory(method, three, monkeypatch):
    monkeypatch.setattr(grid, "LEAST", 64)
    monkeypatch.setattr(grid, "TOTAL", 256)
    monkeypatch.setattr(grid, "SPAN", 200)
    monkeypatch.setattr(engine, "BATCH", 500)
    body = recipe(method)
    states = {p: read(three / p) for p in (*body["models"], "m0")}
    base = states["m0"] if "base" in body else None
    wanted = cw.merge.merge(method, [states[p] for p in body["models"]], base, **body["options"])
    folder.write(build(load(body)), three / "out", threads=2, shard_bytes=2500)
    found = read(three / "out")
    assert found.keys() == wanted.keys() and all(torch.equal(found[k], wanted[k]) for k in wanted)
    assert len(list((three / "out").glob("*.safetensors"))) > 1
    index = json.loads((three / "out" / "model.safetensors.index.json").read_text())["weight_map"]
    assert index.keys() == wanted.keys()
    one = cw.merge.merge(method, [states[p] for p in body["models"]], base, threads=1, **body["options"])
    assert all(torch.equal(one[k], wanted[k]) for k in wanted)


@pytest.mark.parametrize("method", ["linear", "ties"])
def test_sources_are_told_what_is_read_next(method, three, monkeypatch):
    """Every tensor of every source once, before its piece is read for the merge."""
    from commonweight.merge.sources.source import Files

    monkeypatch.setattr(grid, "BATCH", 400)
    told = []
    ahead = Files.ahead
    monkeypatch.setattr(Files, "ahead", lambda self, name: (told.append((self.label, name)), ahead(self, name)))
    built = build(load(recipe(method)))
    folder.write(built, three / "out", threads=1)
    assert sorted(told) == sorted((s.label, n) for s in built.sources.values() for n in SHAPES)


def test_what_lies_in_the_folder(three):
    (three / "m0" / "tokenizer.json").write_text("{}")
    (three / "m0" / "1_Pooling").mkdir()
    (three / "m0" / "1_Pooling" / "config.json").write_text("{}")
    (three / "m0" / "README.md").write_text("of the base")
    done = folder.write(build(load(recipe("ties", dtype="float32"))), three / "out")
    names = {str(p.relative_to(done.folder)) for p in done.folder.rglob("*") if p.is_file()}
    assert names == {
        "README.md", "config.json", "merge.json", "model.safetensors", "tokenizer.json", "1_Pooling/config.json"
    }  # fmt: skip
    assert json.loads((done.folder / "config.json").read_text())["torch_dtype"] == "float32"
    assert (done.folder / "README.md").read_text().count("ties") >= 2
    record = json.loads((done.folder / "merge.json").read_text())
    assert record["inputs"].keys() == {"m0", "m1", "m2", "m3", "m4"} and "density" not in record["recipe"]
    with safe_open(done.folder / "model.safetensors", "pt") as f:
        mark = json.loads(f.metadata()["commonweight"])
        assert mark["inputs"] == record["digest of the inputs"] != EMPTY and mark["merge"] == record["merge"]
        assert f.metadata()["format"] == "pt" and f.get_tensor("s").dtype == torch.float32
    assert not list(three.glob(".*"))


def stop_after(monkeypatch, n: int) -> None:
    """The journal's n-th tensor is the last thing that happens."""
    from commonweight.merge.output.journal import Journal

    add, left = Journal.add, [n]

    def once(self, done):
        if left[0] == 0:
            raise KeyboardInterrupt
        left[0] -= 1
        add(self, done)

    monkeypatch.setattr(Journal, "add", once)


@pytest.mark.parametrize("n", range(5))
@pytest.mark.parametrize("method", ["ties", "lines"])
def test_an_interrupted_merge_goes_on_to_the_same_bytes(method, n, three, monkeypatch):
    folder.write(build(load(recipe(method))), three / "whole")
    with monkeypatch.context() as m:
        stop_after(m, n)
        with pytest.raises(KeyboardInterrupt):
            folder.write(build(load(recipe(method))), three / "out")
    assert not (three / "out").exists() and (three / ".out.merging").exists()
    done = folder.write(build(load(recipe(method))), three / "out", resume=True)
    assert done.reused == n and bytes_of(three / "out") == bytes_of(three / "whole")


@pytest.mark.parametrize("method", ["ties", "linear"])
@pytest.mark.parametrize("what", ["input", "recipe", "output", "journal"])
def test_what_changed_is_not_reused(what, method, three, monkeypatch):
    with monkeypatch.context() as m:
        stop_after(m, 4)
        with pytest.raises(KeyboardInterrupt):
            folder.write(build(load(recipe(method))), three / "out")
    body, part, said = recipe(method), three / ".out.merging", []
    if what == "input":
        file = three / "m2" / "model-00001-of-00002.safetensors"
        before, state = file.stat(), read(three / "m2")
        with safe_open(file, "pt") as f:
            names = list(f.keys())
        state["embed.weight"][3, 4] += 1
        save_file({k: state[k] for k in names}, file)
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    elif what == "recipe":
        body["weights"] = [1.0, 0.5, 0.25, 0.125]
    elif what == "output":
        file = part / "model.safetensors"
        raw = bytearray(file.read_bytes())
        raw[-9] ^= 1
        file.write_bytes(raw)
    else:
        file = part / "journal.jsonl"
        file.write_text(file.read_text()[:-20])
    done = folder.write(build(load(body)), three / "out", resume=True, say=said.append)
    folder.write(build(load(body)), three / "whole")
    assert bytes_of(three / "out") == bytes_of(three / "whole")
    assert done.reused == {"input": 0 if method == "ties" else 3, "recipe": 0, "output": 3, "journal": 3}[what]
    assert said and ("another" in said[0]) == (what == "recipe")


def test_statistics_are_part_of_the_recipe(three):
    """Read from a file beside the recipe; the same file gives the same bytes and digest, another one others."""
    marks = []
    for i, scale in enumerate((1.0, 1.0, 2.0)):
        for k in (1, 2):
            numbers = {f"fisher/{n}": torch.full(s, scale if k == 1 else 1.0) for n, s in SHAPES.items()}
            cw.merge.Statistics("statistics", numbers).save(three / f"s{k}.safetensors")
        body = {"method": "fisher", "models": [{"model": f"m{k}", "statistics": f"s{k}.safetensors"} for k in (1, 2)]}
        folder.write(build(load({**body, "dtype": "float32"})), three / f"out{i}")
        marks.append(json.loads((three / f"out{i}" / "merge.json").read_text())["merge"])
    assert bytes_of(three / "out0") == bytes_of(three / "out1") != bytes_of(three / "out2")
    assert marks[0] == marks[1] != marks[2]


def test_without_resume_it_begins_anew_and_a_second_one_waits(three, monkeypatch):
    part = three / ".out.merging"
    part.mkdir()
    (part / "old.safetensors").write_text("torn")
    lock = folder._lock(part, keep=True)
    with pytest.raises(cw.CommonweightError, match="another process is at work there"):
        folder.write(build(load(recipe("linear"))), three / "out")
    os.close(lock)
    assert folder.write(build(load(recipe("linear"))), three / "out").reused == 0
    with pytest.raises(cw.CommonweightError, match="already exists"):
        folder.write(build(load(recipe("linear"))), three / "out")
    with pytest.raises(cw.CommonweightError, match="this folder cannot be made: "):
        folder.write(build(load(recipe("linear"))), three / "out" / "config.json" / "out")
    assert folder.write(build(load(recipe("linear"))), three / "new" / "folders").folder.is_dir()


@pytest.mark.parametrize("method", ["linear", "ties"])
def test_bad_numbers_leave_nothing_behind(method, three):
    state = read(three / "m2")
    state["layers.1.w"][0, 0] = float("nan")
    for file in (three / "m2").glob("*.safetensors"):
        file.unlink()
    save_file(state, three / "m2" / "model.safetensors")
    with pytest.raises(cw.CommonweightError, match=r"layers.1.w: model \(m2\) has 1 number there that are NaN"):
        folder.write(build(load(recipe(method))), three / "out")
    assert not (three / "out").exists() and not (three / ".out.merging").exists()


def test_a_file_cut_short_names_tensor_and_file(three):
    file = three / "m1" / "model-00002-of-00002.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(
        cw.CommonweightError, match=r"00002.safetensors is damaged, .*: layers.1.w ends 6 bytes after the"
    ):
        build(load(recipe("linear")))


@pytest.mark.parametrize("index", [True, False])
def test_a_model_of_which_a_file_is_missing(three, index):
    """Also where all models lack the same one: nothing in their headers tells."""
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    for i in range(1, 5):
        path = three / f"m{i}"
        if index:
            homes = {n: f for f in names[:1] for n in load_file(path / f)}
            (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": homes}))
        (path / names[1]).unlink()
    with pytest.raises(cw.CommonweightError, match=rf"m1\): {names[0]} is one of 2 files, and {names[1]} is not there"):
        build(load(recipe("linear")))
    with pytest.raises(cw.CommonweightError, match="is one of 2 files"):
        cw.merge.linear([three / "m1" / names[0]])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: {**m, "gone.weight": m["s"]}, "gone.weight: model .*m1.*has it in .*, which does not hold it"),
        (lambda m: {**m, "s": m["embed.weight"]}, "s: model .*m1.*has it in .*, which does not hold it"),
        (lambda m: {**m, "s": f"../m2/{m['s']}"}, "names '../m2/.*'; wanted the name of a file in this folder"),
        (lambda m: {**m, "s": "sub/model.safetensors"}, "names 'sub/model.safetensors'; wanted the name of a file"),
        (lambda m: {**m, "s": 5}, "index.json is damaged"),
        (lambda m: [], "index.json is damaged"),
        (lambda m: {}, "no safetensors file"),
    ],
)
def test_an_index_that_does_not_fit(three, change, message):
    path = three / "m1"
    homes = {n: f.name for f in path.glob("*.safetensors") for n in load_file(f)}
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": homes}))
    cw.merge.linear([path])
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": change(homes)}))
    with pytest.raises(cw.CommonweightError, match=message):
        cw.merge.linear([path])


def entry(shape, at, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": at}


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"a": entry([2], [0, 8.0])}, "a has shape .* both must be whole numbers"),
        ({"a": entry([2.0], [0, 8])}, "both must be whole numbers"),
        ({"a": entry([-2, -1], [0, 8])}, "both must be whole numbers"),
        ({"a": entry([2], [0, 8]), "b": entry([2], [4, 12])}, "b begins within the tensor before it"),
        ({"a": entry([2], [0, 8]), "b": entry([1], [12, 16])}, "b lies behind a hole"),
        ({"a": entry([1, 2], [0])}, "its header cannot be read"),
        ({"a": entry([2], [0, 8], ["F32"])}, "its header cannot be read"),
        ({"__metadata__": 5, "a": entry([2], [0, 8])}, "its header cannot be read"),
        ("[" * 100_000, "its header cannot be read"),
    ],
)
def test_a_header_that_does_not_fit(tmp_path, header, message):
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(16))
    with pytest.raises(cw.CommonweightError, match=rf"model 0 .*model.safetensors is damaged, .*{message}"):
        cw.merge.linear([path])


@pytest.mark.parametrize("name", ["model.safetensors", "model.yaml", "model.json"])
def test_what_is_no_model_is_called_no_tenant(three, name):
    """A file that was cut short, a recipe, a config."""
    whole = (three / "m1" / "model-00001-of-00002.safetensors").read_bytes()
    (three / name).write_bytes(whole[: len(whole) // 2] if name == "model.safetensors" else b"{}\n")
    for given in ([name], [name, "m1"]):
        with pytest.raises(cw.CommonweightError, match=rf"model .*{name}.* is damaged, or is not a safetensors file"):
            build(load({"method": "linear", "models": given}))


def test_a_tenant_that_was_cut_short_is_one_still(tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "t.safetensors", {"commonweight": json.dumps({"format": 1})})
    assert is_tenant(tmp_path / "t.safetensors")
    raw = (tmp_path / "t.safetensors").read_bytes()
    (tmp_path / "t.safetensors").write_bytes(raw[:-1])
    assert is_tenant(tmp_path / "t.safetensors")
    (tmp_path / "t.safetensors").write_bytes(raw[:40])
    assert not is_tenant(tmp_path / "t.safetensors")


def test_the_file_of_a_merged_model_is_a_model(three):
    folder.write(build(load(recipe("linear"))), three / "out")
    built = build(load({"method": "linear", "models": ["out/model.safetensors", "m1"]}))
    assert len(built.tasks) == len(SHAPES)


def test_a_file_that_shrinks_while_it_is_read(three):
    built = build(load(recipe("linear")))
    file = three / "m1" / "model-00001-of-00002.safetensors"
    os.truncate(file, file.stat().st_size - 8)
    with pytest.raises(cw.CommonweightError, match=r"model-00001-of-00002.safetensors is damaged, .* it ends within"):
        folder.write(built, three / "out")
    assert not (three / "out").exists()


def test_no_space_left(three, monkeypatch):
    built = build(load(recipe("linear")))
    with monkeypatch.context() as m:
        m.setattr(shards.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 100})())
        with pytest.raises(cw.CommonweightError, match="bytes are to be written, 100 are free"):
            folder.write(built, three / "out")
    pwrite, left = os.pwrite, [4]

    def full(fd, data, at):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(28, "No space left on device")
        return pwrite(fd, data, at)

    with monkeypatch.context() as m:
        m.setattr(os, "pwrite", full)
        with pytest.raises(cw.CommonweightError, match="no space left; make room"):
            folder.write(built, three / "out")
    assert not (three / "out").exists()
    folder.write(built, three / "out", resume=True)
    folder.write(built, three / "whole")
    assert bytes_of(three / "out") == bytes_of(three / "whole")


@pytest.mark.parametrize(
    ("dtype", "size", "said"),
    [
        ("float16", 60000.0, "float16; choose dtype bfloat16"),
        ("bfloat16", 3e38, "bfloat16; look at the weights"),
        ("float32", 3e38, "float32; look at the weights"),
        (None, 400.0, "float8_e4m3fn; choose dtype bfloat16"),
    ],
)
def test_a_result_that_overflows(three, dtype, size, said):
    for i in range(1, 5):
        state = {k: torch.full_like(t, size, dtype=torch.float32) for k, t in read(three / f"m{i}").items()}
        for file in (three / f"m{i}").glob("*.safetensors"):
            file.unlink()
        save_file(state if dtype else {k: t.to(torch.float8_e4m3fn) for k, t in state.items()},
                  three / f"m{i}" / "model.safetensors")  # fmt: skip
    body = recipe("linear", options={"normalize": False}, **({"dtype": dtype} if dtype else {}))
    with pytest.raises(cw.CommonweightError, match=f"the result does not fit {said}"):
        folder.write(build(load(body)), three / "out")
    assert not (three / "out").exists()


def test_a_file_that_a_killed_process_was_writing_is_not_kept(three):
    (three / ".out.merging").mkdir()
    (three / ".out.merging" / ".merge.json.x1y2z3").write_text("{")
    done = folder.write(build(load(recipe("linear"))), three / "out", resume=True)
    assert not [f.name for f in done.folder.iterdir() if f.name.startswith(".")]


KILLER = """
import os, signal, time
from pathlib import Path
from commonweight.merge.output import folder
from commonweight.merge.recipe import load
from commonweight.merge.recipe.build import build

body = {"method": "ties", "base": "m0", "models": ["m1", "m2"]}
start = time.time()
if os.fork() == 0:  # in a child, as the others: threads of the parent would be lost in a fork
    folder.write(build(load(body)), "whole", threads=2)
    os._exit(0)
os.wait()
step, kills, delay = (time.time() - start) / 12, 0, 0.0
while not Path("out").exists():
    child = os.fork()
    if child == 0:
        folder.write(build(load(body)), "out", threads=2, resume=True)
        os._exit(0)
    time.sleep(delay)
    delay += step
    os.kill(child, signal.SIGKILL)
    kills += os.WIFSIGNALED(os.waitpid(child, 0)[1])
print(kills)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forks of itself")
def test_killed_at_many_points(tmp_path):
    """SIGKILL at growing delays; every next run resumes, and the last one ends with the bytes of an undisturbed one."""
    base, others = models(2, shapes={f"layers.{i}.w": (256, 512) for i in range(24)})
    for i, state in enumerate([base, *others]):
        save(tmp_path / f"m{i}", state)
    run = apart.run("-c", KILLER, cwd=tmp_path)
    assert run.returncode == 0 and int(run.stdout) > 5 and bytes_of(tmp_path / "out") == bytes_of(tmp_path / "whole")
