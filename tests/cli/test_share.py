"""commonweight share, in one process."""

import json

import pytest
from typer.testing import CliRunner

from commonweight import CommonweightError, share
from commonweight.cli import app, main
from tests.adapt import tiny


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.base(tmp_path_factory.mktemp("llama"), "llama")


def test_a_model_is_shared_healed_measured_and_written(model, tmp_path):
    (tmp_path / "held.txt").write_text(" ".join(r["text"] for r in tiny.rows(20, seed=1)))
    rows = tiny.jsonl(tmp_path / "rows.jsonl", [{"text": r["text"]} for r in tiny.rows(40)])
    call = [
        "share",
        str(model),
        "-o",
        "loops=2",
        "-o",
        "relax=2",
        "--heal",
        str(rows),
        "--tokens",
        "0.5k",
        "--lr",
        "1e-3",
    ]
    done = CliRunner().invoke(
        app, [*call, "--max-length", "32", "--eval", str(tmp_path / "held.txt"), "--out", str(tmp_path / "s")]
    )
    assert done.exit_code == 0, done.exception
    told = json.loads((tmp_path / "s" / "share.json").read_text())
    assert set(told["measured"]) == {"original", "shared", "healed"}
    assert told["options"]["relax"] == 2 and told["healed"]["steps"] > 0
    assert not (tmp_path / "s.checkpoint").exists()
    again = share.load(tmp_path / "s")
    assert sum(p.numel() for p in again.parameters()) == told["parameters"]["shared"]
    assert (tmp_path / "s" / "tokenizer.json").exists()


def test_the_plan_runs_nothing(model):
    done = CliRunner().invoke(app, ["share", str(model), "--plan"])
    assert done.exit_code == 0, done.exception
    assert "recursive loops=2" in done.stdout and "cache B/token" in done.stdout
    one = CliRunner().invoke(app, ["share", str(model), "--plan", "-m", "drop", "-o", "keep=1"])
    assert one.stdout.splitlines()[2].startswith("drop keep=1")
    usual = CliRunner().invoke(app, ["share", str(model), "--plan", "-o", "loops=1"])
    assert [line.split()[0] for line in usual.stdout.splitlines()] == ["method", "original", "recursive"]


def test_an_encoder_is_measured_beside_the_original(tmp_path, capsys):
    rows = tiny.jsonl(tmp_path / "rows.jsonl", [{"text": r["text"]} for r in tiny.rows(8)])
    call = ["-o", "loops=1", "--eval", str(rows), "--heal", str(rows), "--out", str(tmp_path / "s")]
    with pytest.raises(SystemExit):
        main(["share", str(tiny.base(tmp_path / "bert")), *call])
    told = json.loads((tmp_path / "s" / "share.json").read_text())
    assert told["measured"]["shared"]["loss"] == 0 and set(told["measured"]) == {"shared", "healed"}
    assert "shared: error of the hidden states 0.0000 of their mean square" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["-m", "recursve", "--plan"], "unknown sharing method 'recursve'; did you mean 'recursive'"),
        (["-o", "loop=2", "--plan"], "unknown option of Recursive 'loop'; did you mean 'loops'"),
        ([], "no output: give --out FOLDER, or --plan"),
        (["--out", "x", "--tokens", "2M"], "--tokens is of healing; name the rows with --heal FILE"),
        (["--out", "x", "--form", "onnx"], "unknown form 'onnx'"),
        (["--out", "x", "--heal", "no.txt"], "no.txt: no such file or folder"),
        (["--out", "x", "--heal", "{rows}", "--tokens", "many"], "--tokens 'many': wanted a number above zero"),
        (["--out", "x", "--heal", "{rows}", "--lr", "-1"], "lr is -1.0; it must be > 0"),
        (["--out", "x", "--heal", "{rows}", "--loss", "kl"], "unknown loss 'kl'"),
        (["--out", "{rows}/x"], "it cannot be written"),
        (["--out", "x", "--heal", "{nothing}"], "the file is empty"),
    ],
)
def test_mistakes_are_told_before_anything_is_loaded(model, args, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("commonweight.share.run.opened", lambda _: pytest.fail("it was loaded"))
    nothing = tmp_path / "nothing.txt"
    nothing.write_text("\n")
    rows = tiny.jsonl(tmp_path / "rows.jsonl", [{"text": "w1 w2"}])
    with pytest.raises(SystemExit) as end:
        main(["share", str(model), *(a.format(rows=rows, nothing=nothing) for a in args)])
    assert end.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.parametrize(("form", "method"), (("albert", "recursive"), ("peft", "exit"), ("unrolled", "exit")))
def test_a_form_that_holds_no_such_model_is_told_before_healing(model, form, method, tmp_path, capsys):
    rows = tiny.jsonl(tmp_path / "rows.jsonl", [{"text": "w1 w2"}])
    call = ["-m", method, "-o", "loops=2", "--heal", str(rows), "--form", form, "--out", str(tmp_path / "s")]
    with pytest.raises(SystemExit):
        main(["share", str(model), *call])
    said = capsys.readouterr()
    assert f"form={form}" in said.err and "step" not in said.out + said.err.replace("Stepped", "")
    assert [f.name for f in tmp_path.iterdir()] == ["rows.jsonl"]


def test_an_output_that_is_there(model, tmp_path):
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "x").write_text("")
    done = CliRunner().invoke(app, ["share", str(model), "--out", str(tmp_path / "s")])
    assert isinstance(done.exception, CommonweightError) and "it is there already" in str(done.exception)
