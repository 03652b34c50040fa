"""The command, and the file of a stream."""

from __future__ import annotations

import json
from shutil import copytree

import pytest

from commonweight import CommonweightError
from commonweight.cli import main
from commonweight.lifelong import read_stream, report
from tests.adapt import tiny
from tests.lifelong import small


@pytest.fixture
def folder(tmp_path):
    for i, n in enumerate(("first", "second")):
        tiny.jsonl(tmp_path / f"{n}.jsonl", tiny.rows(12, i, small.LABELS[n]))
    (tmp_path / "tasks.yaml").write_text(
        "dtype: float32\nrecipe: {epochs: 1, batch_size: 6}\noptions: {rank: 2}\ntasks:\n"
        "  first: {data: first.jsonl, dev: 0.25}\n  second: {data: second.jsonl, eval: first.jsonl, dev: 0.25}\n"
    )
    return tmp_path


def ran(capsys, *args):
    """(exit code, what it said)."""
    try:
        main([str(a) for a in args])
        code = 0
    except SystemExit as e:
        code = e.code
    told = capsys.readouterr()
    return code, told.out + told.err


def test_a_stream_from_the_command_line(folder, model, capsys):
    text = (folder / "tasks.yaml").read_text().replace(", eval: first.jsonl", "")
    (folder / "tasks.yaml").write_text(text)
    shop = folder / "shop"
    how = ("adapt", model, "--stream", folder / "tasks.yaml", "--method", "replay", "-o", "rows=3", "-o", "rank=2")
    code, told = ran(capsys, *how, "--store", shop, "--eval")
    assert code == 0 and "forgetting" in told and "after" in told
    found = json.loads((shop / "streams" / "tasks" / "stream.json").read_text())
    assert found["method"] == "replay" and found["stages"][1]["memory"] == {"first": 3, "second": 3}
    assert (shop / "streams" / "tasks" / "report.html").is_file()
    code, told = ran(capsys, *how, "--store", shop)
    assert code == 2 and "--resume goes on with it" in told
    code, _ = ran(capsys, "store", "verify", shop)
    assert code == 0
    other = folder / "other"
    assert ran(capsys, *how[:4], "--store", other)[0] == 0  # the file has no method: sequential
    assert "Streams" in report(shop / "streams" / "tasks", [other / "streams" / "tasks"]).read_text()


def test_a_stream_of_texts_for_language_modelling(folder, capsys):
    """Losses: what is lost is a rise, and the page of the store says so."""
    model = tiny.base(folder / "llama", "llama")
    text = (folder / "tasks.yaml").read_text().replace(", eval: first.jsonl", "").replace("rows=3", "")
    (folder / "tasks.yaml").write_text(text.replace("batch_size: 6", "batch_size: 6, max_length: 16"))
    for n in ("first", "second"):
        tiny.jsonl(folder / f"{n}.jsonl", [{"text": r["text"]} for r in tiny.rows(8)])
    how = ("adapt", model, "--stream", folder / "tasks.yaml", "--task", "lm", "--method", "o-lora")
    code, told = ran(capsys, *how, "--store", folder / "shop", "--eval")
    assert code == 0 and "forgetting" in told
    found = json.loads((folder / "shop" / "streams" / "tasks" / "stream.json").read_text())
    assert found["better"] == ["loss", False] and all(s["scores"]["first"] > 0 for s in found["stages"])
    code, told = ran(capsys, *how[:-1], "l2p", "--store", folder / "other")
    assert code == 2 and "l2p learns no stream of the task lm; take one of coso, ewc" in told


@pytest.mark.parametrize(
    "more, told",
    [
        (("--method", "replya"), "unknown lifelong method 'replya'; did you mean 'replay'?"),
        (("--method", "replay", "-o", "rwos=2"), "unknown option"),
        (("--method", "replay", "-o", "rows=0"), "rows"),
        (("--eval", "x.tsv"), "it takes no file"),
        (("--tenant", "a"), "--tenant cannot be used with --stream: they stand in the file of --stream; leave it out"),
        (("--out", "a.safetensors"), "what is learned goes into --store"),
        (("--task", "dpo", "--store", "s"), "a stream of the task dpo: wanted classify or lm"),
        ((), "--stream learns into a store, give --store FOLDER"),
    ],
)
def test_wrong_flags_end_with_2_and_what_to_do(more, told, folder, model, capsys):
    code, said = ran(capsys, "adapt", model, "--stream", folder / "tasks.yaml", *more)
    assert code == 2 and told in said


@pytest.mark.parametrize(
    "text, told",
    [
        ("tasks: {}", "wanted names of tasks in their order"),
        ("taks: {}", "line 1: taks: unknown key 'taks'; did you mean 'tasks'?"),
        ("tasks:\n  a: {dev: 0.1}", "line 2: tasks.a: has no data"),
        ("tasks:\n  a: {data: x.tsv, evl: y}", "did you mean 'eval'?"),
        ("recipe: {epoch: 3}\ntasks:\n  a: {data: x.tsv}", "line 1: recipe: unknown"),
        ("tasks:\n  a/b: {data: x.tsv}", "line 2: tasks.a/b"),
        ("method: 3\ntasks:\n  a: {data: x.tsv}", "line 1: method: is 3; wanted a name"),
        ("task: classfy\ntasks:\n  a: {data: x.tsv}", "line 1: task"),
    ],
)
def test_a_wrong_file_says_where(text, told, tmp_path):
    path = tmp_path / "s.yaml"
    path.write_text(text)
    with pytest.raises(CommonweightError) as e:
        read_stream(path)
    assert told in str(e.value)


def test_rows_of_other_classes_are_found_before_anything_is_trained(folder, model, capsys):
    code, told = ran(capsys, "adapt", model, "--stream", folder / "tasks.yaml", "--store", folder / "shop", "--eval")
    assert code == 2 and "does not occur in the training rows" in told
    assert not (folder / "shop").exists()


def test_a_file_of_tasks_is_no_file_of_flags(folder, model, capsys):
    code, told = ran(capsys, "adapt", folder / "tasks.yaml", "--store", folder / "shop")
    assert code == 2 and "goes to --stream" in told


def test_numbers_and_options_of_the_file_by_names_that_others_have(folder, model, capsys):
    """`learning_rate` and `r` of the file; `--lr` and `-o rank` come over them; the adapter is the file's."""
    text = (folder / "tasks.yaml").read_text().replace(", eval: first.jsonl", "")
    text = text.replace("epochs: 1", "num_epochs: 1, learning_rate: 0.02").replace("{rank: 2}", "{adapter: vera, r: 4}")
    (folder / "tasks.yaml").write_text(text)
    how = ("adapt", model, "--stream", folder / "tasks.yaml", "--store")
    assert ran(capsys, *how, folder / "one")[0] == 0
    found = json.loads((folder / "one" / "streams" / "tasks" / "stream.json").read_text())
    assert found["settings"]["lr"] == 0.02 and found["adapter_options"] == {"rank": 4}
    code, told = ran(capsys, *how, folder / "two", "--lr", "0.03", "-o", "lora_alpha=3")
    assert code == 2 and "unknown option of VeRA 'lora_alpha'" in told
    assert ran(capsys, *how, folder / "two", "--lr", "0.03", "-o", "rank=3", "-o", "d_initial=0.2")[0] == 0
    found = json.loads((folder / "two" / "streams" / "tasks" / "stream.json").read_text())
    assert found["settings"]["lr"] == 0.03 and found["adapter"] == "vera"
    assert found["adapter_options"] == {"rank": 3, "d_initial": 0.2}


@pytest.mark.parametrize(
    "text, told",
    [
        ("method: ewcc\ntasks:\n  a: {data: first.jsonl}", "line 1: method: unknown lifelong method 'ewcc'; did you"),
        ("tasks:\n  a: {data: first.jsonl}\n  b: {data: gone.jsonl}", "line 3: tasks.b.data: "),
        ("options: {r: 4, rank: 8}\ntasks:\n  a: {data: first.jsonl}", "rank is given twice"),
    ],
)
def test_a_wrong_file_says_where_before_a_model_is_opened(text, told, folder, model, capsys):
    (folder / "tasks.yaml").write_text(text)
    code, said = ran(capsys, "adapt", model, "--stream", folder / "tasks.yaml", "--store", folder / "shop")
    assert code == 2 and told in said


def test_a_stream_goes_on_where_the_files_of_learned_tasks_are_gone(folder, model, capsys):
    """To the same bits as where they are there; what measures needs rows, and so does joint training."""
    whole = "dtype: float32\nrecipe: {epochs: 1, batch_size: 6}\noptions: {rank: 2}\ntasks:\n"
    one, two = "  first: {data: first.jsonl, eval: third.jsonl}\n", "  second: {data: second.jsonl, dev: 0.25}\n"
    tiny.jsonl(folder / "third.jsonl", tiny.rows(6, 7, small.LABELS["first"]))
    path = folder / "tasks.yaml"
    how = (
        "adapt",
        model,
        "--stream",
        path,
        "--method",
        "replay",
        "-o",
        "rows=3",
        "-o",
        "rank=2",
        "--resume",
        "--store",
    )
    path.write_text(whole + one)
    assert ran(capsys, *how, folder / "there")[0] == 0
    copytree(folder / "there", folder / "gone")
    path.write_text(whole + one + two)
    joint = ("adapt", model, "--stream", path, "--method", "joint", "--store")
    assert ran(capsys, *joint, folder / "joint", "-o", "every=true")[0] == 0
    assert ran(capsys, *how, folder / "there", "--eval")[0] == 0
    (folder / "first.jsonl").unlink()
    code, told = ran(capsys, *how, folder / "fresh")
    assert code == 2 and "first.jsonl" in told  # nothing was learned there
    assert ran(capsys, *how, folder / "gone", "--eval")[0] == 0
    found = {shop: small.told(folder / shop / "streams" / "tasks") for shop in ("there", "gone")}
    assert found["there"] == found["gone"]
    (folder / "third.jsonl").unlink()
    path.write_text(whole + one.replace(", eval: third.jsonl", "") + two)
    code, told = ran(capsys, *how, folder / "gone", "--eval")
    assert code == 2 and "--eval" in told and "first" in told
    path.write_text(whole + one.replace(", eval: third.jsonl", "") + two + two.replace("second:", "third:"))
    code, told = ran(capsys, *joint, folder / "joint", "-o", "every=true", "--resume")
    assert code == 2 and "joint reads the rows of all tasks again, and those of first are gone" in told
