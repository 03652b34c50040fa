"""Tenants files: what they say, and how what is wrong in one is told."""

import pytest

from commonweight import CommonweightError
from commonweight.adapt import Source, read_tenants

GOOD = """\
common: sentences
method: lotr
options: {rank: 8}
task: classify
codec: {"*.C": int8, "*": bfloat16}
recipe: {epochs: 2, lr: 2e-3, temperature: 2}
tenants:
  trec: {data: trec.train.tsv, dev: 0.1, eval: sub/trec.test.tsv}
  sst2: {data: "owner/name", dev: sst2.dev.tsv, no_header: true, text_column: said}
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "tenants.yaml"

    def write(text):
        path.write_text(text)
        return path

    return write


def test_a_whole_file(file, tmp_path):
    job = read_tenants(file(GOOD))
    assert (job.common, job.method, job.options, job.task) == ("sentences", "lotr", {"rank": 8}, "classify")
    assert job.recipe == {"epochs": 2, "lr": 2e-3, "temperature": 2}, "2e-3 is a number, as in YAML 1.2"
    assert job.codec == {"*.C": "int8", "*": "bfloat16"}
    assert job.tenants["trec"] == Source(
        data=str(tmp_path / "trec.train.tsv"), dev="0.1", eval=str(tmp_path / "sub/trec.test.tsv")
    )
    assert job.tenants["trec"].fraction == 0.1
    sst2 = job.tenants["sst2"]
    assert (sst2.data, sst2.dev) == ("owner/name", str(tmp_path / "sst2.dev.tsv")) and sst2.fraction is None
    assert sst2.no_header and sst2.text_column == "said"


def test_little_is_needed(file):
    job = read_tenants(file("tenants:\n  a: {data: a.tsv}\n"))
    assert (job.method, job.common, job.task, job.codec) == (None, None, "classify", None)


WRONG = {
    "key": ("tenents:", "line 7: tenents: unknown key 'tenents'; did you mean 'tenants'", "tenants:"),
    "key of a tenant": (
        "trec: {dat:", "line 8: tenants.trec.dat: unknown key 'dat'; did you mean 'data'", "trec: {data:",
    ),
    "option": ("{rnk: 8}", "line 3: options: unknown option of LoTR 'rnk'; did you mean 'rank'", "{rank: 8}"),
    "option's range": ("{rank: 0}", "line 3: options: LoTR: rank is 0; it must be >= 1", "{rank: 8}"),
    "recipe": ("epoch: 2", "line 6: recipe: unknown option of Recipe 'epoch'; did you mean 'epochs'", "epochs: 2"),
    "recipe's type": ("epochs: many", "line 6: recipe: Recipe: epochs is 'many'; wanted float|none", "epochs: 2"),
    "method": ("method: lotra", "line 2: method: unknown method 'lotra'; did you mean 'lotr'", "method: lotr"),
    "name": ("a/b: {data", "line 8: tenants.a/b: 'a/b' cannot be a tenant's name", "trec: {data"),
    "type": ("common: [a]", "line 1: common: is ['a']; wanted a name", "common: sentences"),
    "type of options": ("options: 8", "line 3: options: is 8; wanted keys and values", "options: {rank: 8}"),
    "type of data": ("data: 3", "line 8: tenants.trec.data: is 3; wanted a name", "data: trec.train.tsv"),
    "no data": ("{dev:", "line 8: tenants.trec: has no data; wanted data: FILE", "{data: trec.train.tsv, dev:"),
    "twice": ("trec: {data: owner", "line 9: tenants.trec appears twice, first in line 8", "sst2: {data: \"owner"),
    "not valid YAML": ("rank: [8}", "tenants.yaml, line 3: not valid YAML", "rank: 8}"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_told_with_its_place(file, case):
    new, message, old = WRONG[case]
    assert old in GOOD
    text = GOOD.replace(old, new, 1) if case != "twice" else GOOD.replace("  sst2:", "  trec:")
    with pytest.raises(CommonweightError) as e:
        read_tenants(file(text))
    assert message in str(e.value) and "tenants.yaml, line" in str(e.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "wanted keys and values"),
        ("- a\n", "wanted keys and values"),
        ("method: lotr\n", "tenants: is None; wanted one or more names"),
        ("tenants: {}\n", "tenants: is {}; wanted one or more names"),
        ("tenants: {a: b.tsv}\n", "tenants.a: is 'b.tsv'; wanted keys"),
        ("tenants: !!python/object/apply:os.getcwd []\n", "not valid YAML: could not determine a constructor"),
    ],
)
def test_other_files(file, text, message):
    with pytest.raises(CommonweightError) as e:
        read_tenants(file(text))
    assert message in str(e.value)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("task: classfy", "line 2: task: unknown task 'classfy'; did you mean 'classify'"),
        ("codec: int99", "line 2: codec: unknown codec 'int99'"),
        ('codec:\n  "*.C": int8\n  "*": int99', r"line 4: codec.*: unknown codec 'int99'"),
        ("codec: {x: 8}", "line 2: codec.x: "),
        ("dtype: float99", "line 2: dtype: "),
        ("pool: poler", "line 2: pool: unknown pool 'poler'; did you mean 'pooler'"),
        ("common: ../up", "line 2: common: '../up' cannot be a"),
    ],
)
def test_what_the_job_checks_is_told_with_its_place(file, line, message):
    with pytest.raises(CommonweightError) as e:
        read_tenants(file(f"method: lotr\n{line}\ntenants: {{a: {{data: b.tsv}}}}\n"))
    assert f"tenants.yaml, {message}" in str(e.value)


DATA = "tenants: {a: {data: b.tsv}}\n"
BOMB = "b0: &b0 [1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"b{i}: &b{i} [{', '.join([f'*b{i - 1}'] * 8)}]\n" for i in range(1, 9)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("recipe:\n  seed: 2024-02-31\n", "line 2: not valid YAML: '2024-02-31' cannot be read"),
        ("recipe: {seed: " + "7" * 5000 + "}\n", "line 1: not valid YAML: '7777"),
        ("x: !!timestamp noon\n", "line 1: not valid YAML: 'noon' cannot be read"),
        ("x: " + "[" * 3000 + "]" * 3000 + "\n", "line 1: not valid YAML: nested more than 50 deep"),
        ("recipe: {seed: 0x" + "f" * 6000 + "}\n", "line 1: recipe.seed is a whole number of 24000 bits"),
        ("options: {rank: 0x" + "f" * 300 + "}\n", "line 1: options.rank is a whole number of 1200 bits"),
        ("task: 0x" + "f" * 6000 + "\n", "line 1: task is a whole number of 24000 bits; wanted at most 64"),
        ("recipe: {1: 2}\n", "line 1: recipe: unknown option of Recipe"),
        (BOMB + "options: {rank: *b8}\n", "values when its aliases are written out; wanted at most 100,000"),
        ("options: &o {rank: [*o]}\n", "it contains itself, by an alias"),
    ],
)
def test_values_that_are_none(file, text, message):
    with pytest.raises(CommonweightError) as e:
        read_tenants(file(text + DATA))
    assert message in str(e.value)


def test_aliases_are_welcome(file):
    job = read_tenants(file("tenants:\n  a: &a {data: a.tsv, dev: 0.1}\n  b: {<<: *a, data: b.tsv}\n"))
    assert job.tenants["b"].dev == "0.1"


def test_no_file(tmp_path):
    with pytest.raises(CommonweightError, match=r"none\.yaml: no such file"):
        read_tenants(tmp_path / "none.yaml")
    with pytest.raises(CommonweightError, match="is a folder; wanted a file in YAML"):
        read_tenants(tmp_path)
