"""Data files as rows: every type, headers found or not, quotation marks, and what is refused."""

import copy
import csv
import json

import datasets
import pandas as pd
import pytest

from commonweight import CommonweightError
from commonweight.adapt import read
from commonweight.adapt.rows import TEXT, column, text_of
from commonweight.adapt.rows.lines import MAX_DEPTH, MAX_ROW
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


def refusal(path, content=None, **how):
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(CommonweightError) as e:
        read(path, **how)
    return str(e.value)


WORDS = ["2024-01-02", "12:30", "01", "1.50", "1e3", "true", "False", "null", "NA", "nan", "-0", "  x", "٣"]


def test_every_format_gives_the_words_of_the_file(tmp_path):
    rows = [{"text": f"row {i}", "label": w} for i, w in enumerate(WORDS)]
    tiny.jsonl(tmp_path / "a.jsonl", rows)
    (tmp_path / "a.json").write_text(json.dumps(rows, indent=1))
    pd.DataFrame(rows).to_csv(tmp_path / "a.csv", index=False)
    pd.DataFrame(rows).to_csv(tmp_path / "a.tsv", index=False, sep="\t")
    pd.DataFrame(rows).to_parquet(tmp_path / "a.parquet")
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "folder")
    for name in ("a.jsonl", "a.json", "a.csv", "a.tsv", "a.parquet", "folder"):
        assert read(tmp_path / name) == rows, name


def test_numbers_of_json_keep_their_digits(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"a": 1.50, "b": 7, "c": true, "d": 1e3, "e": [0.10]}\n')
    (row,) = read(tmp_path / "a.jsonl")
    assert [str(v) for v in row.values()][:4] == ["1.50", "7", "True", "1e3"] and row == {
        "a": 1.5, "b": 7, "c": True, "d": 1000.0, "e": [0.1]
    }  # fmt: skip
    assert json.dumps(row["e"]) == "[0.1]" and str(copy.deepcopy(row)["a"]) == "1.50"


def test_rows_of_json_may_differ(tmp_path):
    (tmp_path / "a.jsonl").write_text('\ufeff{"a": 1}\n\n{"a": "x", "b": {"c": null}}\r\n')
    assert read(tmp_path / "a.jsonl") == [{"a": 1, "b": None}, {"a": "x", "b": {"c": None}}]


def test_json_as_one_object(tmp_path):
    (tmp_path / "a.json").write_text('{\n "version": 1,\n "data": [{"a": "x"}, {"a": "y"}]}')
    told = []
    assert (
        read(tmp_path / "a.json", say=told.append) == [{"a": "x"}, {"a": "y"}] and "rows are those of 'data'" in told[0]
    )
    (tmp_path / "a.json").write_text('{"a": ["x", "y"], "b": ["1", "2"]}')
    assert read(tmp_path / "a.json") == [{"a": ["x", "y"], "b": ["1", "2"]}], "one object a line is a row"
    (tmp_path / "a.json").write_text('{"a": ["x", "y"],\n "b": ["1", "2"]}')
    assert read(tmp_path / "a.json") == [{"a": "x", "b": "1"}, {"a": "y", "b": "2"}]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"a": 1}\n{"a": 1,}\n', "line 2: not valid JSON"),
        ('{"a": 1}\n[1]\n', "line 2: it is a list; wanted an object"),
        ('{"a": 1, "a": 2}\n', "line 1: the key 'a' appears twice"),
        ('{"a": "\\ud800"}\n', "line 1: half a character"),
        ('{"a": ' + "1" * 5000 + "}\n", "line 1: Exceeds the limit"),
        ('[{"a": 1}, 3]', "row 2: it is a number"),
        ('[{"a": 1},]', "row 1: a comma with no row after it"),
        ('[{"a": 1} {"a": 2}]', "row 1: wanted a comma"),
        ('[{"a": 1}] x', "something follows the list of rows"),
        ('[{"a": "x', "row 1: it has no end"),
        (b'{"a": "caf\xe9"}\n', "line 1: not UTF-8"),
        ("text".encode("utf-16"), "it is UTF-16; wanted plain text in UTF-8"),
        (b"\x1f\x8b\x08\x00", "it is gzip"),
    ],
)
def test_wrong_json(tmp_path, content, message):
    assert f"a.jsonl: cannot be read as json: {message}" in refusal(tmp_path / "a.jsonl", content)


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_the_bounds_of_a_row(tmp_path, name):
    def written(value):
        (tmp_path / name).write_text(value if name == "a.jsonl" else f"[{value}]")
        return tmp_path / name

    def nested(depth):
        return '{"a": ' + "[" * (depth - 1) + "]" * (depth - 1) + "}"

    assert read(written(nested(MAX_DEPTH)))
    assert "more than 64 lists and objects inside each other" in refusal(written(nested(MAX_DEPTH + 1)))
    assert read(written('{"a": "' + "[{" * 200 + '"}')), "brackets within a text nest nothing"
    assert read(written('{"a": [' + "[]," * 200 + "[]]}")), "beside each other they do not either"
    assert "more than 64 lists and objects" in refusal(written(nested(200_000)))
    text = "x" * (MAX_ROW // 2)
    assert len(read(written('{"a": "' + text + '"}'))[0]["a"]) == len(text)
    assert "more than 16,777,216" in refusal(written('{"a": "' + 2 * text + '"}'))


def test_a_header_that_lacks_a_name_moves_no_column(tmp_path):
    said = []
    (tmp_path / "a.csv").write_text("text,label\ngood,1,x\nbad,0,y\n")
    rows = read(tmp_path / "a.csv", say=said.append)
    assert rows == [{"text": "good", "label": "1", "column 3": "x"}, {"text": "bad", "label": "0", "column 3": "y"}]
    assert "every row has 1 more than the 2 cells that the header names" in said[0]


def test_a_row_has_as_many_cells_as_the_header(tmp_path):
    told = refusal(tmp_path / "a.csv", "text,label\ngood,1,x\nbad,0\n")
    assert "cannot be read as csv: line 2: 3 cells (good, 1, x), but the first line has 2 (text, label)" in told
    assert "line 2: 3 cells" in refusal(tmp_path / "a.csv", "text,label\ngood,1,x\n"), "one row is no pattern"
    assert "line 3: 1 cells" in refusal(tmp_path / "a.csv", "text,label\na,1\nb\n")
    assert "line 4: 3 cells" in refusal(tmp_path / "a.csv", 'text,label\n"a\nb",1\nc, d,0\n')
    assert "line 2: 3 cells" in refusal(tmp_path / "a.tsv", "text\tlabel\na\tb\t1\n")
    assert "a tab within a text must go" in refusal(tmp_path / "a.tsv", "1\ta\n0\tb\tc\n")
    (tmp_path / "a.csv").write_text("text,label,\na,1,\nb,0\n".replace("b,0", "b,0,"))
    assert read(tmp_path / "a.csv")[1] == {"text": "b", "label": "0", "column 3": ""}
    (tmp_path / "a.csv").write_text("text,label\na,1,\nb,0,,\n")
    assert read(tmp_path / "a.csv")[1] == {"text": "b", "label": "0"}, "cells of nothing say nothing"


def test_what_csv_cannot_mean(tmp_path):
    assert "the column 'text' appears twice" in refusal(tmp_path / "a.csv", "text,text\na,1\n")
    assert "a quotation mark before it is not closed" in refusal(tmp_path / "a.csv", 'text,label\n"a,1\nb,0\n')
    assert "write a quotation mark within a text twice" in refusal(tmp_path / "a.csv", 'text,label\n"a" b,1\n')


@pytest.mark.parametrize(("sep", "word"), [(";", "semicolons"), ("\t", "tabs"), ("|", "bars")])
def test_other_separators(tmp_path, sep, word):
    told = []
    (tmp_path / "a.csv").write_text(f'text{sep}label\nso, so{sep}1\n"a{sep}b"{sep}0\n')
    rows = read(tmp_path / "a.csv", say=told.append)
    assert rows == [{"text": "so, so", "label": "1"}, {"text": f"a{sep}b", "label": "0"}]
    assert told == [f"{tmp_path / 'a.csv'}: its columns are separated by {word}"]
    said = refusal(tmp_path / "a.csv", f"text{sep}label\na, b{sep}1\nc{sep}d{sep}0\n")
    assert f"its header is separated by {word} and not by commas, but line 3: 3 cells" in said


def test_a_tsv_that_is_a_csv(tmp_path):
    told = []
    (tmp_path / "a.tsv").write_text('text,label\n"a, b",1\n')
    assert read(tmp_path / "a.tsv", say=told.append) == [{"text": "a, b", "label": "1"}]
    assert "separated by commas" in told[0]
    (tmp_path / "a.tsv").write_text("a text, with a comma\nand, another\n")
    assert read(tmp_path / "a.tsv")[1] == {"text": "and, another"}


def test_a_long_cell(tmp_path):
    limit = csv.field_size_limit()
    (tmp_path / "a.csv").write_text("text,label\n" + "x" * 300_000 + ",1\n")
    assert len(read(tmp_path / "a.csv")[0]["text"]) == 300_000
    assert csv.field_size_limit() == limit, "the process keeps its own"


def test_folders_of_datasets(tmp_path):
    splits = {s: datasets.Dataset.from_list([{"text": s, "label": "a"}]) for s in ("train", "test")}
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "d")
    assert read(tmp_path / "d")[0]["text"] == "train" and read(tmp_path / "d", split="test")[0]["text"] == "test"
    assert read(f"{tmp_path / 'd'}:test")[0]["text"] == "test"
    assert "unknown split 'tset'; did you mean 'test'" in refusal(f"{tmp_path / 'd'}:tset")


def test_messages_of_parquet_have_no_keys_that_others_have(tmp_path):
    call = {"role": "assistant", "calls": [{"name": "f"}]}
    rows = [{"messages": [{"role": "user", "content": "a"}, call], "note": None}, {"messages": [], "note": "b"}]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet") == rows


def test_a_column_of_images_is_told():
    with pytest.raises(CommonweightError, match=r"no text column .*; 'image' is of another sense: a base that reads"):
        column([{"image": "a.png", "label": "x"}], None, TEXT, "text")
