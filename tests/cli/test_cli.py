"""The command line: what it prints, how it ends, and that it is quick to say so."""

import json
import os
import subprocess
import sys

import pytest

import commonweight as cw
from commonweight.cli import main
from commonweight.cli.adapt import line
from commonweight.cli.errors import explain
from tests import apart
from tests.adapt import tiny


def call(capsys, *args):
    """(exit code, stdout, stderr)."""
    try:
        main([str(a) for a in args])
        code = 0
    except SystemExit as e:
        code = e.code or 0
    out = capsys.readouterr()
    return code, out.out, out.err


@pytest.fixture
def files(tmp_path, bert):
    """Arguments of a run that is all right."""
    data = tiny.tsv(tmp_path / "train.tsv", tiny.rows(40))
    tiny.tsv(tmp_path / "test.tsv", tiny.rows(20, seed=1))
    return ["adapt", bert, data, "--out", tmp_path / "legal.safetensors", "--dtype", "float32", "--epochs", "1"]


def test_adapt(capsys, files, tmp_path):
    code, out, err = call(
        capsys, *files, "--method", "mos", "-o", "rank=4", "-o", "budget=2", "--eval", tmp_path / "test.tsv",
        "--dev", "0.2", "--tenant", "counsel", "--lr", "0.01", "--batch-size", "8", "--seed", "3",
    )  # fmt: skip
    assert code == 0, err
    first, second = out.splitlines()
    told = json.loads((tmp_path / "legal.json").read_text())
    assert first == f"accuracy {told['metrics']['eval']['accuracy']:.4f} (n=20)"
    assert second.startswith(
        f"{tmp_path}/legal.safetensors: mos, {told['parameters']:,} parameters, {told['bytes']:,} bytes"
    )
    assert told["tenant"] == "counsel" and told["settings"]["options"]["rank"] == 4 and told["settings"]["seed"] == 3
    assert told["metrics"]["dev"]["accuracy"] >= 0 and told["bytes"] == (tmp_path / "legal.safetensors").stat().st_size
    assert "step 4/4: dev accuracy" in err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["legal.json", "legal.safetensors", "test.tsv", "train.tsv"]


def test_a_warning_is_one_line(files):
    """As a process: pytest keeps warnings to itself."""
    told = apart.run("-m", "commonweight", *files, "--method", "lora", "-o", 'ranks=[["query", 2]]')
    assert told.returncode == 0
    (line,) = [x for x in told.stderr.splitlines() if "names 'query'" in x]
    assert line.startswith("commonweight: warning: legal: ranks names 'query', which fits none of the ")
    assert ".py" not in told.stderr


def test_the_file_gives_the_measured_tenant_back(capsys, files, tmp_path, bert):
    from commonweight.adapt import evaluate, open_host

    _, out, _ = call(capsys, *files, "--eval", tmp_path / "test.tsv", "--lr", "0.01")
    host = open_host(bert, dtype="float32")
    assert host.load("again", tmp_path / "legal.safetensors").labels == ("food", "law", "sport")
    metrics = evaluate(host, "again", tiny.rows(20, seed=1))
    assert line("classify", metrics) in out


def test_a_method_that_begins_from_data(capsys, files, tmp_path):
    code, _, err = call(capsys, *files, "--method", "fish", "-o", "ratio=0.01", "--rows-shown", "4")
    assert code == 0, err
    settings = json.loads((tmp_path / "legal.json").read_text())["settings"]
    assert settings["rows_shown"] == 4 and settings["options"]["start"] == "given" and settings["options"]["kept"]
    assert (
        call(capsys, *files[:3], "--method", "fish", "--rows-shown", "0", "--out", tmp_path / "x.safetensors")[0] == 2
    )


def test_adapt_embed_and_lm(capsys, tmp_path, bert, llama):
    pairs = tiny.jsonl(tmp_path / "pairs.jsonl", tiny.pairs(20))
    args = ["--dtype", "float32", "--epochs", "1", "--method", "lora"]
    code, out, err = call(
        capsys, "adapt", bert, pairs, "--task", "embed", "--eval", pairs, "--out", tmp_path / "e.safetensors", *args
    )
    assert code == 0 and out.startswith("loss ") and "retrieval accuracy" in out and "(n=20)" in out, err
    rows = [{"prompt": "w0 w1", "completion": "w2 w3"}] * 12
    data = tiny.jsonl(tmp_path / "lm.jsonl", rows)
    code, out, err = call(
        capsys, "adapt", llama, data, "--task", "lm", "--dev", "0.25", "--out", tmp_path / "l.safetensors", *args
    )
    assert code == 0 and out.startswith("dev: loss ") and "bits per byte" in out, err
    assert "loss on the completions only" in err


def test_columns_and_sites(capsys, tmp_path, bert, files):
    data = tiny.jsonl(tmp_path / "x.jsonl", [{"said": r["text"], "goal": r["label"]} for r in tiny.rows(20)])
    files[2] = data
    code, _, err = call(
        capsys, *files, "--text-column", "said", "--label-column", "goal", "--sites", "*.query", "-m", "lora"
    )
    assert code == 0, err
    assert json.loads((tmp_path / "legal.json").read_text())["parameters"] == 2 * 8 * 64 + 3 * 33


WRONG = {
    "unknown method": (["--method", "moss"], "unknown method 'moss'; did you mean 'mos'"),
    "unknown option": (["-o", "rnk=3"], "unknown option of MoS 'rnk'; did you mean 'rank'"),
    "option without a value": (["-o", "rank"], "option 'rank': wanted name=value"),
    "option of another type": (["-o", "rank=big"], "MoS: rank=big: wanted int"),
    "option out of range": (["-o", "rank=0"], "MoS: rank is 0; it must be >= 1"),
    "bad task": (["--task", "clasify"], "unknown task 'clasify'; did you mean 'classify'"),
    "bad tenant name": (["--tenant", "a/b"], "'a/b' cannot be a tenant's name"),
    "out without its suffix": (["--out", "legal.bin"], "wanted a name like legal.safetensors"),
    "out in a file": (["--out", "{tmp}/train.tsv/legal.safetensors"], "train.tsv is a file; wanted a folder"),
    "bad epochs": (["--epochs", "0"], "epochs is 0.0; it must be > 0"),
    "bad dtype": (["--dtype", "int8"], "unknown dtype 'int8'"),
    "bad dev fraction": (["--dev", "1.5"], "dev=1.5: wanted a fraction"),
    "no dev file": (["--dev", "{tmp}/dev.tsv"], "dev.tsv: no such file"),
    "no eval file": (["--eval", "{tmp}/eval.tsv"], "eval.tsv: no such file"),
    "unseen label": (
        ["--eval", "{tmp}/unseen.tsv"],
        "unseen.tsv: row 2: the label 'art' does not occur in the training rows",
    ),
    "unseen label in dev": (["--dev", "{tmp}/unseen.tsv"], "row 2: the label 'art' does not occur"),
    "pairs that are no JSON": (
        ["-m", "lora", "-o", "ranks=*.q"],
        "LoRA: ranks=*.q: wanted tuple[tuple[str, int], ...]",
    ),
    "not a finite number": (["-m", "lora", "-o", "alpha=nan"], "LoRA: alpha is nan; wanted float|none, finite"),
    "unknown column": (["--text-column", "txt"], "unknown text column 'txt'; did you mean 'text'"),
    "bad pattern": (["--sites", "*.q_proj"], "matches no site; the linear layers end in"),
    "too long": (["--max-length", "999"], "max_length=999 is more than the model's 64 positions"),
    "usage": (["--rank", "3"], "No such option"),
    "not a number": (["--epochs", "three"], "Invalid value for '--epochs'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_mistake_is_one_message_and_exit_code_2(capsys, files, tmp_path, case):
    extra, message = WRONG[case]
    tiny.tsv(tmp_path / "unseen.tsv", [{"label": "law", "text": "w1"}, {"label": "art", "text": "w2 w3"}])
    before = sorted(tmp_path.iterdir())
    code, out, err = call(capsys, *files, *(e.replace("{tmp}", str(tmp_path)) for e in extra))
    assert code == 2 and message in err and out == "", err
    assert "Traceback" not in err
    assert sorted(tmp_path.iterdir()) == before, "nothing half-written"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("gone.jsonl", None, "no such file"),
        ("empty.jsonl", "", "the file is empty"),
        ("a.docx", "x", "unknown file type '.docx'"),
        ("a.jsonl", '{"text": "w1"}\n', "a.jsonl: no label column among text"),
        ("b.jsonl", '{"text": "w1", "label": "a"}\n{"text": 3, "label": "b"}\n', "b.jsonl: row 2: 'text' is 3"),
        ("a.csv", "comment,stars\nw1,5\nw2,4\n", "among comment, stars; usual names: "),
        ("a.tsv", "law\tw1\nlaw\tw2\n", "only the label 'law' occurs"),
    ],
)
def test_bad_data(capsys, files, tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_text(content)
    files[2] = tmp_path / name
    code, _, err = call(capsys, *files)
    assert code == 2 and message in err, err


def test_a_model_that_is_not_there(capsys, files, tmp_path):
    files[1] = tmp_path / "gone" / "model" / "x"
    code, _, err = call(capsys, *files)
    assert code == 2 and "cannot be read for the task 'classify'" in err and "Traceback" not in err


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_is_not_writable(capsys, files, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    code, _, err = call(capsys, *files, "--out", tmp_path / "locked" / "legal.safetensors")
    assert code == 2 and "is not writable" in err


def test_a_folder_that_refuses_writes_whoever_asks(capsys, files, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)
    code, _, err = call(capsys, *files)
    assert code == 2 and f"the folder {tmp_path} is not writable" in err


def test_resume_with_other_settings(capsys, files, tmp_path, monkeypatch):
    from commonweight.adapt import trainer

    def interrupt(self, *args):
        raise KeyboardInterrupt

    with monkeypatch.context() as m:
        m.setattr(trainer.Watch, "on_epoch_begin", lambda *a, **k: None)
        m.setattr(trainer.Run, "finish", interrupt)
        code, _, err = call(capsys, *files, "-m", "probe")
    assert code == 130 and "--resume" in err
    code, _, err = call(capsys, *files, "-m", "probe")
    assert code == 2 and "an unfinished run lies there" in err
    code, _, err = call(capsys, *files, "-m", "lora", "--resume")
    assert code == 2 and 'method: then "probe", now "lora"' in err
    code, _, err = call(capsys, *files, "-m", "probe", "--resume")
    assert code == 0 and not (tmp_path / "legal.checkpoint").exists(), err


def test_methods(capsys):
    code, out, _ = call(capsys, "methods")
    assert code == 0 and all(name in out for name in cw.methods.available())
    code, out, _ = call(capsys, "methods", "mos")
    assert code == 0
    for word in ("2410.00938", "budget", "int", "none", "shards per vector"):
        assert word in out
    code, out, _ = call(capsys, "methods", "probe")
    assert code == 0 and "no options" in out
    code, _, err = call(capsys, "methods", "probee")
    assert code == 2 and err.startswith("commonweight: unknown method 'probee'; did you mean 'probe'")


def test_help_version_and_no_arguments(capsys):
    code, out, _ = call(capsys, "adapt", "--help")
    assert code == 0 and "Examples" in out and "--resume" in out
    code, out, _ = call(capsys, "--version")
    assert code == 0 and out.strip() == f"commonweight {cw.__version__}"
    code, out, err = call(capsys)
    assert code in (0, 2) and "adapt" in out + err
    code, _, err = call(capsys, "adpat")
    assert code == 2 and "adpat" in err


def test_help_loads_no_torch():
    code = "import sys, commonweight.cli; print([m for m in ('torch', 'transformers', 'datasets') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_what_is_the_users_to_mend():
    assert explain(cw.CommonweightError("so")) == "so"
    assert explain(FileNotFoundError(2, "No such file or directory", "a.txt")) == "a.txt: No such file or directory"
    assert explain(OSError("first\nsecond")) == "first"
    assert explain(ZeroDivisionError("bug")) is None


def test_a_fault_of_the_program_keeps_its_traceback(monkeypatch, files):
    from commonweight.adapt import files as module

    def broken(*args, **kwargs):
        raise ZeroDivisionError("bug")

    monkeypatch.setattr(module, "run", broken)
    with pytest.raises(ZeroDivisionError):
        main([str(a) for a in files])


def test_lines_that_scripts_read():
    assert line("classify", {"accuracy": 0.5, "n": 4}) == "accuracy 0.5000 (n=4)"
    assert line("lm", {"loss": 1.0, "bits_per_byte": 0.25, "n": 2}) == "loss 1.0000 bits per byte 0.2500 (n=2)"
    assert line("embed", {"loss": 1.0, "accuracy": 0.25}) == "loss 1.0000 retrieval accuracy 0.2500"


def test_options_of_several_values_are_json(capsys, files, tmp_path):
    code, _, err = call(capsys, *files, "-m", "lora", "-o", 'ranks=[["*.query", 4]]', "--sites", "*.query")
    assert code == 0, err
    told = json.loads((tmp_path / "legal.json").read_text())
    assert told["settings"]["options"]["ranks"] == [["*.query", 4]] and told["parameters"] == 2 * 4 * 64 + 3 * 33
    assert "train.tsv: no header line; first row read as data" in err


def test_a_csv_without_a_header(capsys, files, tmp_path):
    files[2] = tmp_path / "train.csv"
    files[2].write_text("".join(f"{r['label']},{r['text']}\n" for r in tiny.rows(40)))
    code, _, err = call(capsys, *files, "-m", "probe")
    assert code == 2 and "--no-header" in err
    code, _, err = call(capsys, *files, "-m", "probe", "--no-header")
    assert code == 0 and "first row read as data" in err


def test_a_codec_is_measured_as_the_file_holds_it(capsys, files, tmp_path, bert):
    from commonweight.adapt import evaluate, open_host

    test = tmp_path / "test.tsv"
    _, out, _ = call(capsys, *files, "--eval", test, "--dev", test, "--lr", "0.01", "--codec", "compeft:density=0.3")
    host = open_host(bert, dtype="float32")
    tenant = host.load("again", tmp_path / "legal.safetensors")
    metrics = evaluate(host, "again", tiny.rows(20, seed=1))
    assert line("classify", metrics) in out
    report = json.loads((tmp_path / "legal.json").read_text())
    assert report["codec"] == "compeft:density=0.3" and report["bytes"] < tenant.nbytes / 2
    assert report["metrics"]["dev"] == pytest.approx(metrics)


@pytest.mark.parametrize(
    ("method", "codec", "message"),
    [("mos", "int9", "unknown codec 'int9'"), ("pissa", "compeft", "compeft stores what training changed")],
)
def test_a_codec_that_does_not_fit_is_refused_before_the_training(capsys, files, tmp_path, method, codec, message):
    before = sorted(tmp_path.iterdir())
    code, _, err = call(capsys, *files, "--method", method, "--codec", codec)
    assert code == 2 and message in err and sorted(tmp_path.iterdir()) == before
