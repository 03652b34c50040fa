"""commonweight adapt --tenants, and tenants that come late to a store."""

import json

import pytest

import commonweight as cw
from commonweight.adapt import evaluate, open_host
from tests.adapt import tiny
from tests.cli.test_cli import call

TWO, OTHER = ("good", "bad"), ("left", "right")


@pytest.fixture
def folder(tmp_path):
    for name, labels, seed in (("topic", ("law", "sport", "food"), 0), ("mood", TWO, 1), ("late", OTHER, 2)):
        tiny.jsonl(tmp_path / f"{name}.jsonl", tiny.rows(24, seed, labels))
        tiny.jsonl(tmp_path / f"{name}.test.jsonl", tiny.rows(12, seed + 5, labels))
    (tmp_path / "tenants.yaml").write_text(
        "common: tasks\nmethod: lotr\noptions: {rank: 2}\ndtype: float32\n"
        "recipe: {epochs: 1, batch_size: 8}\ntenants:\n"
        "  topic: {data: topic.jsonl, eval: topic.test.jsonl}\n  mood: {data: mood.jsonl, dev: 0.25}\n"
    )
    return tmp_path


def test_into_a_store_and_a_late_one(capsys, folder, bert):
    store = folder / "store"
    code, out, err = call(capsys, "adapt", bert, "--tenants", folder / "tenants.yaml", "--store", store)
    assert code == 0, err
    head, topic, mood = out.splitlines()
    assert head.split() == ["tenant", "metrics", "own", "bytes", "common", "bytes", "written", "to"]
    assert topic.startswith("topic   accuracy ") and "(n=12)" in topic and topic.endswith("store: topic@1")
    assert mood.startswith("mood    dev: accuracy ") and "(n=6)" in mood
    commons = cw.Commons(store)
    before = {p: p.read_bytes() for p in store.glob("pools/*/*")}
    shared = set(commons.show("topic").pools.values()) & set(commons.show("mood").pools.values())
    assert len(shared) >= 6, "U and V of the projections"
    code, out, err = call(
        capsys, "adapt", bert, folder / "late.jsonl", "--eval", folder / "late.test.jsonl", "--store", store,
        "--common", "tasks", "--tenant", "late", "--epochs", "1", "--dtype", "float32", "--codec", "bfloat16",
    )  # fmt: skip
    assert code == 0, err
    record = commons.show("late")
    told, where = out.splitlines()
    assert where == (
        f"{store}: late@1: lotr, {12 * 4 + 2 * 33} parameters, {record.nbytes:,} bytes, "
        f"{record.marginal_bytes:,} of them marginal"
    )
    assert shared <= set(record.pools.values()), "the common as it was, and its own pools alone in bfloat16"
    now = {p: p.read_bytes() for p in store.glob("pools/*/*")}
    assert before.items() <= now.items()
    host = open_host(bert, dtype="float32")
    for name in ("topic", "late"):
        host.load_from(commons, name)
    assert host.common("tasks").frozen
    accuracy = evaluate(host, "late", tiny.rows(12, 7, OTHER))["accuracy"]
    assert told == f"accuracy {accuracy:.4f} (n=12)", "measured as it is stored"
    assert not list(folder.glob("*.checkpoint"))
    code, _, err = call(capsys, "adapt", bert, "--tenants", folder / "tenants.yaml", "--store", store)
    assert code == 2 and "the common 'tasks' already exists, with late; choose another name" in err


def test_into_a_folder(capsys, folder, bert, monkeypatch):
    from commonweight.adapt import trainer

    def interrupt(self):
        raise KeyboardInterrupt

    with monkeypatch.context() as m:
        m.setattr(trainer.Run, "finish", interrupt)
        code, _, err = call(capsys, "adapt", bert, "--tenants", folder / "tenants.yaml", "--out", folder / "out")
    assert code == 130 and "--resume" in err and not (folder / "out").exists()
    code, out, err = call(
        capsys, "adapt", bert, "--tenants", folder / "tenants.yaml", "--out", folder / "out", "--resume"
    )
    assert code == 0, err
    assert sorted(p.name for p in (folder / "out").iterdir()) == [
        "mood.safetensors", "report.json", "topic.safetensors"
    ]  # fmt: skip
    assert not list(folder.glob("*.checkpoint"))
    told = json.loads((folder / "out" / "report.json").read_text())
    assert told["common"] == "tasks" and set(told["tenants"]) == {"topic", "mood"}
    assert told["tenants"]["mood"]["metrics"]["dev"]["accuracy"] >= 0
    host = open_host(bert, dtype="float32")
    a, b = (host.load(n, folder / "out" / f"{n}.safetensors") for n in ("topic", "mood"))
    assert all(a.pools[n] is b.pools[n] for n in host.common("tasks").pools)
    assert f"{host.common('tasks').nbytes:,}" in out and f"{a.private_nbytes:,}" in out


WRONG = {
    "no place": (["--tenants", "{f}/tenants.yaml"], "--out FOLDER, or into a store"),
    "a file for several": (["--tenants", "{f}/tenants.yaml", "--out", "{f}/a.safetensors"], "to a folder; name one"),
    "said twice": (
        ["--tenants", "{f}/tenants.yaml", "--out", "{f}/o", "--batch-size", "8"],
        "--batch-size cannot be used with --tenants",
    ),
    "data beside": (["{f}/late.jsonl", "--tenants", "{f}/tenants.yaml", "--out", "{f}/o"], "DATA cannot be used"),
    "no data": (["--out", "{f}/a.safetensors"], "no DATA: name a file to train on"),
    "nowhere": (["{f}/late.jsonl"], "no output: give --out FILE.safetensors or --store FOLDER"),
    "common without store": (["{f}/late.jsonl", "--out", "{f}/a.safetensors", "--common", "x"], "which store has it?"),
    "no name": (["{f}/late.jsonl", "--store", "{f}/s"], "the tenant needs a name, --tenant NAME"),
    "no store": (
        ["{f}/late.jsonl", "--store", "{f}/no", "--common", "x", "--tenant", "t"],
        "no is not a store; `commonweight store init` makes one",
    ),
    "unsafe name": (["{f}/late.jsonl", "--store", "{f}/s", "--tenant", "a/b"], "'a/b' cannot be a tenant's name"),
    "missing rows": (["--tenants", "{f}/lost.yaml", "--out", "{f}/o"], "lost.jsonl: no such file"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_mistake_is_one_message_and_exit_code_2(capsys, folder, bert, case):
    (folder / "lost.yaml").write_text("tenants: {a: {data: lost.jsonl}}\n")
    args, message = WRONG[case]
    code, out, err = call(capsys, "adapt", bert, *(a.format(f=folder) for a in args))
    assert (code, out) == (2, "") and message in err, err
    assert err.startswith("commonweight: ") and "Traceback" not in err
    assert not (folder / "o").exists() and not (folder / "s").exists()


def test_a_run_that_fails_leaves_no_store(capsys, folder, bert):
    store = folder / "new"
    (folder / "wrong.yaml").write_text((folder / "tenants.yaml").read_text().replace("mood.jsonl", "lost.jsonl"))
    late = [folder / "lost.jsonl", "--store", store, "--tenant", "t"]
    for args in (["--tenants", folder / "wrong.yaml", "--store", store], late):
        code, _, err = call(capsys, "adapt", bert, *args)
        assert code == 2 and "lost.jsonl: no such file" in err and not store.exists()
    (folder / "notes").mkdir()
    (folder / "notes" / "mine.txt").write_text("mine")
    code, _, err = call(capsys, "adapt", bert, "--tenants", folder / "wrong.yaml", "--store", folder / "notes")
    assert code == 2 and "notes is not a store and holds mine.txt" in err, "before any file is read"
    store.mkdir()
    assert call(capsys, "adapt", bert, "--tenants", folder / "wrong.yaml", "--store", store)[0] == 2
    assert not [*store.iterdir()]


def test_a_common_that_the_store_does_not_have(capsys, folder, bert):
    store = folder / "store"
    host = open_host(bert, dtype="float32")
    host.add("a", "lotr", rank=2, common="tasks", labels=TWO)
    cw.Commons(store).publish(host, "a")
    late = [folder / "late.jsonl", "--store", store, "--tenant", "late", "--dtype", "float32"]
    code, _, err = call(capsys, "adapt", bert, *late, "--common", "task")
    assert code == 2 and "unknown common 'task'; did you mean 'tasks'" in err
    code, _, err = call(capsys, "adapt", bert, *late, "--common", "tasks", "-o", "rank=4")
    assert code == 2 and "this tenant wants (32, 4): use the options of its tenants" in err
    assert list(cw.Commons(store)) == ["a"]
