"""A merged result is measured where it is made, and is a model or a tenant that everything else takes."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel

import commonweight as cw
from commonweight.adapt import evaluate, open_host, read
from commonweight.adapt import run as adapt
from commonweight.formats import native
from commonweight.merge.learning import evaluation, harness
from tests.adapt import tiny
from tests.cli.test_merge import run
from tests.laws.subjects import stir

LABELS = ("food", "law", "sport")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a base, two tenants of it with heads, and rows of their tasks."""
    at = tmp_path_factory.mktemp("made")
    tiny.base(at / "base", "bert")
    host = open_host(at / "base", dtype="float32")
    for i, name in enumerate(("one", "two")):
        stir(host.add(name, "lora", rank=2, labels=LABELS), seed=i)
        host.save(name, at / f"{name}.safetensors")
        tiny.tsv(at / f"{name}.test.tsv", tiny.rows(30, seed=i))
    return at, host


@pytest.fixture
def here(made, monkeypatch):
    monkeypatch.chdir(made[0])
    return made[1]


def accuracy(host, name):
    return evaluate(host, name, read(f"{name}.test.tsv"))["accuracy"]


def both(out, *more):
    return run("--method", "linear", "base+one.safetensors", "base+two.safetensors", "--out", out, *more)


def test_a_merged_model_is_measured_with_its_tenants_heads(here, capsys):
    """Weight 1 for one tenant and 0 for the other: the merge is that tenant, and so is its accuracy."""
    assert both("m1", "-w", "1", "-w", "0", "--eval", "one=one.test.tsv", "--eval", "two=two.test.tsv") == 0
    shown = capsys.readouterr().out
    told = {(s["task"], s["metric"]): s for s in json.loads(Path("m1/evaluation.json").read_text())}
    assert (
        told["one", "accuracy"]["value"] == pytest.approx(accuracy(here, "one")) and told["one", "accuracy"]["n"] == 30
    )
    card = Path("m1/README.md").read_text()
    assert f"| one | accuracy | {accuracy(here, 'one'):.4f} |  | 30 | one.test.tsv |" in card and "macro_f1" in shown
    again = cw.merge.evaluate("m1", {"x": "one.test.tsv"}, heads={"x": "one.safetensors"}, limit=10)
    assert again[0].n == 10
    evaluation.write(Path("m1"), again)
    assert Path("m1/README.md").read_text().count("## Evaluation") == 1


def test_a_merged_tenant_is_measured_on_its_base(here, capsys):
    args = ["--tenants", "one.safetensors", "two.safetensors", "-w", "1", "-w", "0", "--out", "t1.safetensors"]
    assert run(*args, "--base", "base", "--eval", "one=one.test.tsv") == 0
    assert "one" in capsys.readouterr().out
    told = native.read_header(Path("t1.safetensors"))["metrics"]
    assert told["evaluated"]["one"]["accuracy"] == pytest.approx(accuracy(here, "one"))
    assert told["merged"]["method"] == "linear"


def test_a_merged_model_is_a_model(here, tmp_path):
    assert both("m2") == 0
    found = load_file("m2/model.safetensors")
    loaded = AutoModel.from_pretrained("m2").state_dict()
    assert all(torch.equal(loaded[k], t) for k, t in found.items())
    host = open_host("m2", dtype="float32")
    stir(host.add("more", "lora", rank=1, labels=LABELS))
    assert evaluate(host, "more", read("one.test.tsv"))["n"] == 30
    files = adapt("m2", "one.test.tsv", tmp_path / "new.safetensors", method="bitfit", epochs=1, say=lambda _: None)
    assert files.tenant.exists() and cw.merge.make({"method": "linear", "models": ["m2", "base"]}, tmp_path / "m3")


@pytest.mark.parametrize("space", ["pools", "weights"])
def test_a_merged_tenant_is_a_tenant(space, here, tmp_path):
    """It loads, is published and comes back from a store, and answers in a mixed batch as it answers alone."""
    file = cw.merge.tenants(["one.safetensors", "two.safetensors"], space=space).save(tmp_path / "t.safetensors")
    store = cw.Commons(tmp_path / "store")
    store.publish_file(file)
    here.load("merged", file)
    here.load_from(store, "t")
    ids = torch.randint(4, 44, (4, 6), generator=torch.Generator().manual_seed(0))
    readers = ["one", "merged", "t", None]
    with torch.no_grad(), here.route(readers):
        mixed = here.model(input_ids=ids).logits
    for i, reader in enumerate(readers[:3]):
        with torch.no_grad(), here.route(reader):
            alone = here.model(input_ids=ids[i : i + 1]).logits
        torch.testing.assert_close(mixed[i : i + 1, : alone.shape[1]], alone, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(
        evaluate(here, "merged", read("one.test.tsv")), evaluate(here, "t", read("one.test.tsv"))
    )
    here.remove("merged"), here.remove("t")


def test_a_search_from_the_command_line(here, capsys, monkeypatch):
    """Of one tenant or the other, and how much of it. Its log goes when it is done; one that was killed is not gone on
    with over other rows."""
    more = ["--search", "models.1.weight=0..1", "--search", "method=linear|karcher", "--budget", "3"]
    assert both("m5", *more, "--eval", "one=one.test.tsv", "--eval-limit", "8") == 0
    shown = capsys.readouterr().out
    assert "m5: the best of 3 trials" in shown and "models.1.weight=" in shown and "accuracy" in shown
    assert (Path("m5") / "evaluation.json").exists() and not Path(".m5.search.json").exists()

    def dies(wanted, folder, asked=[]):  # noqa: B006 (it counts)
        asked.append(folder)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return 0.9

    with monkeypatch.context() as m:
        m.setattr(evaluation, "score", dies)
        assert both("m6", *more, "--eval", "one=one.test.tsv") == 130
    capsys.readouterr()
    Path("other.tsv").write_text(Path("one.test.tsv").read_text().replace("law", "LAW").replace("food", "law"))
    told = Path(".m6.search.json").read_text()
    assert json.loads(told)["scores"] == [0.9]
    for rows in (["one=other.tsv"], ["one=one.test.tsv", "--eval-limit", "8"], ["one=one.test.tsv", "--head", HEAD]):
        assert both("m6", *more, "--eval", *rows) == 2
        assert ".m6.search.json: the log of another search: evaluation differ" in capsys.readouterr().err
    assert Path(".m6.search.json").read_text() == told and not Path("m6").exists()


HEAD = "one=two.safetensors"


class Manager:
    all_tasks = ("arc_easy", "mine")

    def __init__(self, include_path=None):
        self.include_path = include_path


def fake(monkeypatch, asked):
    """lm-evaluation-harness as far as it is used here."""

    def simple_evaluate(**how):
        asked.append(how)
        row = {"alias": "mine", "acc,none": 0.25, "acc_stderr,none": 0.05, "em,strict": 0.5, "em_stderr,strict": "N/A"}
        return {"results": {"mine": row}, "n-samples": {"mine": {"original": 90, "effective": 7}}}

    whole = {"lm_eval": {"simple_evaluate": simple_evaluate}, "lm_eval.tasks": {"TaskManager": Manager},
             "lm_eval.models": {}, "lm_eval.models.huggingface": {"HFLM": dict}}  # fmt: skip
    for name, inside in whole.items():
        module = types.ModuleType(name)
        module.__dict__.update(inside)
        monkeypatch.setitem(sys.modules, name, module)


def test_lm_evaluation_harness(here, monkeypatch, tmp_path):
    asked = []
    fake(monkeypatch, asked)
    assert both("m4", "--eval", "mine", "--eval", "one=one.test.tsv", "--eval-limit", "7", "--eval-tasks", ".") == 0
    (how,) = asked
    assert how["tasks"] == ["mine"] and how["limit"] == 7 and how["task_manager"].include_path == "."
    assert how["model"]["pretrained"] == "m4"
    card = Path("m4/README.md").read_text()
    assert (
        "| mine | acc | 0.2500 | 0.0500 | 7 | lm-evaluation-harness |" in card
        and "| mine | em,strict | 0.5000 |  |" in card
    )
    tiny.base(tmp_path / "llama", "llama")
    host = open_host(tmp_path / "llama", "lm", dtype="float32")
    stir(host.add("a", "lora", rank=1))
    file = host.save("a", tmp_path / "a.safetensors")
    (score, _) = cw.merge.evaluate(file, ["mine"], base=tmp_path / "llama")
    assert score == ("mine", "acc", 0.25, 0.05, 7, "lm-evaluation-harness")
    assert asked[1]["model"]["pretrained"].config.model_type == "llama"


def test_what_a_run_leaves_beside_its_tasks_is_no_part_of_them(tmp_path):
    wanted = evaluation.Wanted({}, {}, ("t",), None, None, 4, tmp_path)
    for name in ("t.yaml", "_template_yaml", "utils.py", "rows.jsonl"):
        before = evaluation.mark(wanted)
        (tmp_path / name).write_text(name)
        assert evaluation.mark(wanted) != before
    before = evaluation.mark(wanted)
    for name in ("__pycache__", ".out.trial-1"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "utils.pyc").write_bytes(b"1")
    (tmp_path / ".out.search.json").write_text("{}")
    assert evaluation.mark(wanted) == before


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--eval", "one"], r"--eval one needs lm-evaluation-harness .*pip install 'commonweight\[eval\]'"),
        (["--eval", "three=one.test.tsv"], r"--eval three: no head for it among the inputs \(heads: one, two\)"),
        (["--eval", "one=none.tsv"], "none.tsv"),
        (["--eval", "one=one.test.tsv", "--head", "on=one.safetensors"], "unknown task of --head 'on'; did you mean"),
        (["--eval", "one=one.test.tsv", "--head", "one"], "--head one: wanted a task's name and a tenant"),
        (["--eval", "one=one.test.tsv", "--head", "one=bare.safetensors"], "it has no classifier"),
        (["--eval", "one=one.test.tsv", "--eval-limit", "0"], "--eval-limit is 0"),
        (["--eval", "one=one.test.tsv", "--plan"], "--plan writes nothing that --eval could measure"),
        (["--head", "one=one.safetensors"], "--head, --eval-limit and --eval-tasks go with --eval"),
        (["--eval", ","], "nothing to evaluate"),
        (["--search", "models.1.weight=0..1"], "--search needs --eval"),
        (["--jobs", "2"], "--engine, --jobs and --ray go with --search"),
        (["--search", "models.1.weight=0", "--eval", "one=one.test.tsv"], "wanted PLACE=LOW..HIGH or PLACE=word"),
    ],
)
def test_bad_input_is_told_before_anything_is_made(here, args, message, capsys, monkeypatch):
    import re

    monkeypatch.setitem(sys.modules, "lm_eval", None)
    if not Path("bare.safetensors").exists():
        here.add("bare", "lora", rank=1)
        here.save("bare", "bare.safetensors")
        here.remove("bare")
    assert both("bad", *args) == 2 and re.search(message, capsys.readouterr().err)
    assert not Path("bad").exists()


def test_unknown_tasks_and_folders(monkeypatch, here):
    fake(monkeypatch, [])
    with pytest.raises(
        cw.CommonweightError, match="unknown task of lm-evaluation-harness 'arc_eas'; did you mean 'arc_e"
    ):
        harness.manager(["arc_eas"])
    with pytest.raises(cw.CommonweightError, match="--eval-tasks nowhere: no such folder"):
        harness.manager(["mine"], "nowhere")
    with pytest.raises(cw.CommonweightError, match="a tenant is evaluated on its base"):
        cw.merge.evaluate("one.safetensors", {"one": "one.test.tsv"})


@pytest.fixture(scope="module")
def spoken(tmp_path_factory):
    """Two language models, and texts."""
    at = tmp_path_factory.mktemp("spoken")
    for i, name in enumerate(("a", "b")):
        torch.manual_seed(i)
        tiny.base(at / name, "llama")
    tiny.jsonl(at / "texts.jsonl", [{"text": r["text"]} for r in tiny.rows(12)])
    tiny.jsonl(at / "labelled.jsonl", tiny.rows(4))
    return at


def test_rows_of_a_language_model_are_scored_by_perplexity(spoken, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(spoken)
    out = tmp_path / "out"
    assert run("--method", "linear", "a", "b", "--out", out, "--eval", "talk=texts.jsonl") == 0
    told = {s["metric"]: s["value"] for s in json.loads((out / "evaluation.json").read_text())}
    wanted = evaluate(open_host(out, "lm", dtype="float32"), None, read("texts.jsonl"), "lm")
    assert told["loss"] == pytest.approx(wanted["loss"])
    assert told["perplexity"] == pytest.approx(torch.tensor(wanted["loss"]).exp().item(), rel=1e-5)
    found = evaluation.score(evaluation.prepare(["talk=texts.jsonl"]), out)
    assert found == pytest.approx(1 / told["perplexity"])
    capsys.readouterr()
    assert run("--method", "linear", "a", "b", "--out", tmp_path / "no", "--eval", "talk=labelled.jsonl") != 0
    assert "(heads: none), and its rows have labels" in " ".join(capsys.readouterr().err.split())


def test_a_search_by_rows_of_a_language_model(spoken, tmp_path, monkeypatch, capsys):
    pytest.importorskip("cmaes")
    monkeypatch.chdir(spoken)
    out = tmp_path / "out"
    args = ["--method", "linear", "a", "b", "-w", "1", "-w", "0", "--out", out, "--eval", "talk=texts.jsonl"]
    assert run(*args, "--search", "weights.1=0..1", "--budget", "2") == 0
    assert "the best of 2 trials" in capsys.readouterr().out


def test_a_merged_tenant_without_a_head_is_scored_as_a_language_model(spoken, tmp_path):
    host = open_host(spoken / "a", "lm", dtype="float32")
    for i in range(2):
        stir(host.add(f"t{i}", "lora", rank=2), seed=i)
        host.save(f"t{i}", tmp_path / f"t{i}.safetensors")
    found = cw.merge.tenants([tmp_path / "t0.safetensors", tmp_path / "t1.safetensors"], weights=[1, 0])
    path = found.save(tmp_path / "merged.safetensors")
    rows = read(spoken / "texts.jsonl")
    scores = {s.metric: s.value for s in cw.merge.evaluate(path, {"talk": rows}, base=spoken / "a")}
    assert scores["loss"] == pytest.approx(evaluate(host, "t0", rows, "lm")["loss"], rel=1e-4)
