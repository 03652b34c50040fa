"""commonweight compare: what it prints, what it leaves, and how mistakes end."""

import json

import pytest

from commonweight.compare import driver
from tests.adapt import tiny
from tests.cli.test_cli import call


@pytest.fixture
def args(tmp_path, bert):
    for j, (part, n) in enumerate({"train": 24, "dev": 12, "test": 20}.items()):
        tiny.tsv(tmp_path / f"one.{part}.tsv", tiny.rows(n, seed=j))
    return ["compare", bert, tmp_path / "one.train.tsv", "--dtype", "float32", "--epochs", "1", "--batch-size", "12",
            "--cache", tmp_path / "cache"]  # fmt: skip


def test_compare(capsys, args, tmp_path):
    args += ["--methods", "lora,probe,mos", "--budgets", "1KB,4KB", "--seeds", "2", "-o", "mos.rank=4"]
    code, out, err = call(capsys, *args, "--report", tmp_path / "out")
    assert code == 0, err
    assert (
        "3 methods, 3 configs, 1 task, 2 seeds" in out and "3,584" in out and "out/index.html: 3 configs, 6 runs" in out
    )
    assert "1KB: lora has no config so small; the nearest possible is lora rank=1 with 3,584 bytes" in err
    assert "runs 6/6: " in err
    told = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [p["name"] for p in told["points"]] == ["lora rank=1", "probe", "mos rank=4 private=0 budget=1"]
    assert told["points"][1]["budgets"] == ["1KB", "4KB"] and len(told["points"][0]["runs"]) == 2
    code, _, err = call(capsys, *args, "--report", tmp_path / "out")
    assert code == 2 and "results.json: a file already exists; --overwrite replaces it" in err
    code, _, err = call(capsys, *args, "--report", tmp_path / "out", "--overwrite")
    assert code == 0 and json.loads((tmp_path / "out" / "results.json").read_text())["points"] == told["points"], err
    code, again, err = call(capsys, *args)
    assert code == 0 and "runs " not in err and again.splitlines()[:8] == out.splitlines()[:8]


def test_a_method_that_the_model_cannot_have_is_left_out(capsys, args):
    code, out, err = call(capsys, *args, "--methods", "road,probe", "--seeds", "1")
    assert code == 0 and "road is left out: road: " in err and "choose group_size" in err and "probe" in out, err
    code, _, err = call(capsys, *args, "--methods", "road", "--seeds", "1")
    assert code == 2 and "choose group_size" in err and "Traceback" not in err


def test_defaults_without_budgets_and_a_tuned_rate(capsys, args, tmp_path):
    code, out, err = call(capsys, *args, "--methods", "probe", "--seeds", "1", "--trials", "2")
    assert code == 0 and "tuning 1/1: probe one, lr " in err and "the best of 2 trials" in out, err


def test_rates_that_are_tried_on_one_task_serve_all(capsys, args, tmp_path):
    for part in ("train", "dev", "test"):
        (tmp_path / f"two.{part}.tsv").write_bytes((tmp_path / f"one.{part}.tsv").read_bytes())
    args.insert(3, tmp_path / "two.train.tsv")
    args += ["--methods", "probe", "--seeds", "1", "--report", tmp_path / "out"]
    code, out, err = call(capsys, *args, "--trials", "2", "--tune-on", "two")
    assert code == 0 and "tuning 1/1: probe two, lr " in err and "per config on two, used on every task" in out, err
    (point,) = json.loads((tmp_path / "out" / "results.json").read_text())["points"]
    assert point["lr"]["one"] == point["lr"]["two"] and [len(t) for t in point["trials"].values()] == [0, 2]
    code, _, err = call(capsys, *args, "--overwrite", "--trials", "2", "--tune-on", "three")
    assert code == 2 and "unknown task to tune on 'three'" in err
    code, _, err = call(capsys, *args, "--overwrite", "--tune-on", "two")
    assert code == 2 and "--tune-on two: nothing is tuned; give --trials as well" in err


def test_ctrl_c_says_how_to_go_on(capsys, args, tmp_path, monkeypatch):
    done = []

    def execute(job, cache):
        if done:
            raise KeyboardInterrupt
        done.append(job)
        return driver.execute(job, driver.Cache(cache))

    monkeypatch.setattr(driver, "_execute", execute)
    code, _, err = call(capsys, *args, "--methods", "probe", "--seeds", "2")
    assert code == 130 and f"interrupted; 1 finished runs are in {tmp_path}/cache; the same command goes on" in err


WRONG = {
    "unknown method": (["--methods", "lora,moss"], "unknown method 'moss'; did you mean 'mos'"),
    "no method": (["--methods", ","], "no method to compare"),
    "budget that nobody can read": (["--budgets", "4KB,many"], "budget 'many': wanted a size above zero"),
    "default twice": (["--budgets", "default,default"], "the budget default is given twice"),
    "no budget": (["--budgets", ","], "no budget in it"),
    "budget that nothing meets": (
        ["--methods", "lora,mos", "--budgets", "100,200"],
        "no method has a config within 100 or 200; the nearest possible is lora rank=1 with 3,584 bytes",
    ),
    "option without its method": (["-o", "rank=3"], "option 'rank=3': wanted method.name=value"),
    "tests for other files": (["--eval", "a.tsv", "--eval", "b.tsv"], "2 x --eval for 1 training files"),
    "no seeds": (["--seeds", "0"], "--seeds 0: wanted at least 1"),
    "no jobs": (["--jobs", "0"], "--jobs 0: wanted at least 1"),
    "cache that is a file": (["--cache", "{tmp}/one.dev.tsv"], "is a file; wanted a folder"),
    "report that is a file": (["--report", "{tmp}/one.dev.tsv"], "is a file; wanted a folder"),
    "dev rows with a strange label": (["--dev", "{tmp}/odd.tsv"], "odd.tsv: row 2: the label 'art' does not occur"),
    "empty tests": (["--eval", "{tmp}/empty.tsv"], "empty.tsv: the file is empty"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_mistake_is_one_message_and_exit_code_2(capsys, args, tmp_path, case):
    extra, message = WRONG[case]
    tiny.tsv(tmp_path / "odd.tsv", [{"label": "law", "text": "w1"}, {"label": "art", "text": "w2 w3"}])
    (tmp_path / "empty.tsv").touch()
    if "--methods" not in extra:
        extra = ["--methods", "lora", *extra]
    code, out, err = call(capsys, *args, *(e.replace("{tmp}", str(tmp_path)) for e in extra))
    assert code == 2 and message in " ".join(err.split()) and out == "", err
    assert "Traceback" not in err and not (tmp_path / "cache").exists(), "nothing was trained"
