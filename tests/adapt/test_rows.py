"""Data files as rows: every type, headers found or not, quotation marks, and what is refused."""

import pandas as pd
import pytest

from commonweight import CommonweightError
from commonweight.adapt import read
from commonweight.adapt.rows import column, text_of
from tests.adapt import tiny

ROWS = [{"label": "0", "text": 'He said "no'}, {"label": "1", "text": "NA"}, {"label": "0", "text": "a, b"}]


@pytest.mark.parametrize("header", [False, True])
def test_tsv_with_quotes_and_with_or_without_a_header(tmp_path, header):
    assert read(tiny.tsv(tmp_path / "a.tsv", ROWS, header)) == ROWS


def test_tsv_with_the_text_first(tmp_path):
    (tmp_path / "a.tsv").write_text("one text here\t1\nanother text\t0\na third\t1\n")
    assert read(tmp_path / "a.tsv")[1] == {"text": "another text", "label": "0"}


def test_csv_keeps_its_quoting(tmp_path):
    pd.DataFrame(ROWS).to_csv(tmp_path / "a.csv", index=False)
    assert read(tmp_path / "a.csv") == ROWS


def test_jsonl_and_parquet(tmp_path):
    assert read(tiny.jsonl(tmp_path / "a.jsonl", ROWS)) == ROWS
    pd.DataFrame(ROWS).to_parquet(tmp_path / "a.parquet")
    assert read(str(tmp_path / "a.parquet")) == ROWS


def test_a_header_that_only_the_user_knows(tmp_path):
    (tmp_path / "a.csv").write_text("id,utterance,goal\n1,hello there,greet\n")
    assert read(tmp_path / "a.csv", ["utterance", "goal"]) == [{"id": "1", "utterance": "hello there", "goal": "greet"}]
    with pytest.raises(CommonweightError, match="3 columns and no header line"):
        read(tmp_path / "a.csv", no_header=True)
    (tmp_path / "a.tsv").write_text("id\tutterance\tgoal\n1\thello there\tgreet\n")
    assert read(tmp_path / "a.tsv", ["goal"]) == read(tmp_path / "a.csv")
    with pytest.raises(CommonweightError, match="3 columns and no header line"):
        read(tmp_path / "a.tsv")


def test_a_csv_has_a_header_whatever_its_names(tmp_path):
    (tmp_path / "a.csv").write_text("\ncomment,stars\ngood,5\n")
    told = []
    assert read(tmp_path / "a.csv", say=told.append) == [{"comment": "good", "stars": "5"}] and not told
    (tmp_path / "a.csv").write_text("5,good\n1,quite bad\n")
    assert read(tmp_path / "a.csv", no_header=True, say=told.append)[0] == {"label": "5", "text": "good"}
    assert told == [f"{tmp_path / 'a.csv'}: no header line; first row read as data"]


def test_a_label_that_is_a_usual_column_name_makes_no_header(tmp_path):
    (tmp_path / "a.tsv").write_text("positive\tso good\nnegative\tnot at all\n")
    told = []
    assert read(tmp_path / "a.tsv", say=told.append)[0] == {"label": "positive", "text": "so good"}
    assert told == [f"{tmp_path / 'a.tsv'}: no header line; first row read as data"]


def test_one_column_is_text(tmp_path):
    (tmp_path / "a.tsv").write_text("one line\nanother line\n")
    assert read(tmp_path / "a.tsv") == [{"text": "one line"}, {"text": "another line"}]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.tsv", "", "the file is empty"),
        ("a.tsv", "label\ttext\n", "no rows"),
        ("a.jsonl", "", "the file is empty"),
        ("a.jsonl", "{not json\n", "cannot be read as json"),
        ("a.csv", "label,text\n1,a\n2,b,c,d\n", "cannot be read as csv"),
        ("a.parquet", "no parquet", "cannot be read as parquet"),
        ("a.xlsx", "x", r"unknown file type '\.xlsx'"),
        ("a", "x", "unknown file type 'a'"),
    ],
)
def test_bad_files(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(CommonweightError, match=message):
        read(tmp_path / name)


def test_bad_bytes(tmp_path):
    (tmp_path / "a.tsv").write_bytes(b"0\tcaf\xe9\n")
    with pytest.raises(CommonweightError, match="cannot be read as tsv"):
        read(tmp_path / "a.tsv")


def test_what_is_not_there(tmp_path):
    with pytest.raises(CommonweightError, match="no such file"):
        read(tmp_path / "gone.jsonl")
    with pytest.raises(CommonweightError, match="is a folder"):
        read(tmp_path)


def test_a_hub_data_set(monkeypatch):
    import datasets

    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    found = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features=features)
    asked = []
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, split: asked.append((*a, split)) or found)
    assert read("owner/set") == [{"text": "a", "label": "yes"}, {"text": "b", "label": "no"}]
    read("owner/set:test")
    read("owner/set.v2:en:test")
    assert asked == [("owner/set", None, "train"), ("owner/set", None, "test"), ("owner/set.v2", "en", "test")]
    with pytest.raises(CommonweightError, match="wanted name, name:split or"):
        read("owner/set:a:b:c")

    def gone(*_, split):
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", gone)
    with pytest.raises(CommonweightError, match="neither a file here nor a data set"):
        read("owner/set")


def test_columns():
    row = [{"Text": "a", "intent": "b"}]
    assert column(row, None, ("text",), "text") == "Text"
    assert column(row, "intent", ("label",), "label") == "intent"
    with pytest.raises(CommonweightError, match="unknown label column 'intend'; did you mean 'intent'"):
        column(row, "intend", ("label",), "label")
    with pytest.raises(
        CommonweightError, match=r"no label column among Text, intent; .* name yours with --label-column"
    ):
        column(row, None, ("label",), "label")
    with pytest.raises(CommonweightError, match="row 3: 'text' is ''; wanted a text"):
        text_of({"text": ""}, "text", 2)
