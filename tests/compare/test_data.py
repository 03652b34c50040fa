"""Which files belong together, and how a comparison is checked before the model is opened."""

import pytest

import commonweight as cw
from commonweight.compare import Comparison, Data, find, parse_methods, parse_options


def test_files_beside_each_other(files):
    assert find([str(files / "one.train.tsv")]) == (
        Data("one", *(str(files / f"one.{part}.tsv") for part in ("train", "test", "dev"))),
    )


def test_files_by_name_and_by_order(files, tmp_path):
    a, b, test = tmp_path / "a.tsv", tmp_path / "b.tsv", str(files / "one.test.tsv")
    for f in (a, b):
        f.write_text("law\tw1\n")
    found = find([str(a), str(b)], [test, test], ["0.25"])
    assert [(d.name, d.test, d.dev) for d in found] == [("a", test, 0.25), ("b", test, 0.25)]
    assert find([str(a)], [test])[0].dev == 0.1
    assert find([str(a)], [test], [str(b)])[0].dev == str(b)


@pytest.mark.parametrize(
    ("train", "test", "dev", "message"),
    [
        ([], [], [], "no training file"),
        (["gone.tsv"], [], [], "gone.tsv: no such file"),
        (["{files}/one.train.tsv"], ["{files}/a", "{files}/b"], [], "2 x --eval for 1 training files"),
        (["{files}/one.train.tsv"], ["{files}/no.tsv"], [], "no.tsv: no such file"),
        (["{files}/one.test.tsv"], [], [], "one.test.tsv: no test file; give it with --eval"),
        (["{files}/one.train.tsv", "{files}/two.train.tsv"], [], ["x.tsv"], "1 x --dev for 2 training files"),
        (["{files}/one.train.tsv"] * 2, [], [], "two training files are called 'one'"),
    ],
)
def test_files_that_do_not_fit(files, train, test, dev, message):
    args = [[f.replace("{files}", str(files)) for f in part] for part in (train, test, dev)]
    with pytest.raises(cw.CommonweightError, match=message):
        find(*args)


def test_a_kind_of_file_that_nobody_reads(tmp_path):
    (tmp_path / "a.docx").write_text("x")
    with pytest.raises(cw.CommonweightError, match=r"unknown file type '\.docx'"):
        find([str(tmp_path / "a.docx")])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"methods": ("lorra",)}, "unknown method 'lorra'; did you mean 'lora'"),
        ({"methods": ()}, "no method to compare"),
        ({"methods": ("lora", "lora")}, "the method lora is given twice"),
        ({"budgets": ("4KB", "4096")}, "the budget 4096 is given twice"),
        ({"budgets": ("4QB",)}, "budget '4QB': wanted a size"),
        ({"seeds": 0}, "--seeds 0: wanted at least 1"),
        ({"trials": -1}, "--trials -1: wanted at least 0"),
        ({"task": "clasify"}, "unknown task 'clasify'"),
        ({"dtype": "int8"}, "unknown dtype"),
        ({"against": "mos"}, "unknown method to pair with 'mos'"),
        ({"codec": "int9"}, "unknown codec 'int9'; did you mean 'int8'"),
        ({"recipe": {"epochs": 0}}, "epochs is 0"),
        ({"options": {"mos": {}, "mo": {}}}, "unknown method 'mo'"),
    ],
)
def test_comparisons_that_are_wrong(data, wrong, message):
    with pytest.raises(cw.CommonweightError, match=message):
        Comparison(**{"model": "m", "data": data, "methods": ("lora",), **wrong})


def test_methods_and_options_as_text():
    assert parse_methods("lora, mos,") == ("lora", "mos")
    assert set(parse_methods("all")) == set(cw.methods.available())
    assert parse_options(["mos.rank=16", "mos.alpha=none", "lora.rank=2"]) == {
        "mos": {"rank": 16, "alpha": None},
        "lora": {"rank": 2},
    }
    for text, message in (("rank=3", "wanted method.name=value"), ("mos.rnk=3", "unknown option of MoS 'rnk'")):
        with pytest.raises(cw.CommonweightError, match=message):
            parse_options([text])
