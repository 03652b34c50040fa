"""commonweight exchange, in one process."""

import json

import pytest
import torch
from typer.testing import CliRunner

from commonweight import Commons, CommonweightError
from commonweight.adapt import open_host
from commonweight.cli import app, main
from commonweight.exchange import run
from tests.adapt import tiny

FAST = ["--clients", "4", "--rounds", "2", "--lr", "1e-2", "--dtype", "float32"]


def call(*args):
    return CliRunner().invoke(app, ["exchange", *map(str, args)])


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    return tiny.tsv(folder / "rows.tsv", tiny.rows(40), True), tiny.tsv(folder / "test.tsv", tiny.rows(20, 5), True)


def test_a_run_its_store_and_its_page(bert, rows, tmp_path):
    data, held = rows
    out = tmp_path / "run"
    done = call("simulate", bert, data, "-m", "fed-sb", "-o", "rank=2", *FAST, "--eval", held, "--out", out)
    assert done.exit_code == 0, done.exception
    assert "fed-sb, " in done.stdout and "bytes up" in done.stdout and done.stdout.startswith("accuracy 0.")
    told = json.loads((out / "run.json").read_text())
    assert [r["round"] for r in told["curve"]] == [0, 1] and len(told["clients"]) == 4
    host = open_host(bert, dtype="float32")
    tenant = host.load_from(Commons(out / "store"), "global")
    assert tenant.method.name == "lora-xs" and tenant.labels == ("food", "law", "sport")
    assert call("report", out).exit_code == 0
    page = (out / "report.html").read_text()
    assert "Exchange: fed-sb" in page and "<svg" in page and "http" not in page.replace("http://www.w3.org", "")


def test_options_of_the_adapter(bert, rows, tmp_path):
    how = ["-o", "adapter=uni-lora", "-o", "dim=32", "--private", "*head*", "--holdout", "0.2"]
    done = call("simulate", bert, rows[0], *how, *FAST, "--out", tmp_path / "run")
    assert done.exit_code == 0, done.exception
    told = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (told["adapter"], told["adapter_options"], told["travels"]) == ("uni-lora", {"dim": 32}, 32)
    assert all("accuracy" in c["metrics"] for c in told["clients"].values())
    assert len(list(Commons(tmp_path / "run" / "store"))) == 5
    assert call("report", tmp_path / "run").exit_code == 0


@pytest.fixture(scope="module")
def shop(bert, rows, tmp_path_factory):
    """A store with a common of two factors, which one tenant found."""
    folder = tmp_path_factory.mktemp("shop")
    job = folder / "job.yaml"
    job.write_text(
        f"tenants: {{first: {{data: {rows[0]}}}}}\nmethod: lora-xs\noptions: {{rank: 2, factors: common}}\n"
        f"sites: '*.query'\ncommon: factors\nrecipe: {{epochs: 1}}\ndtype: float32\n"
    )
    app(["adapt", str(bert), "--tenants", str(job), "--store", str(folder / "shop")], standalone_mode=False)
    return folder / "shop"


def test_clients_of_a_common_in_a_store(bert, rows, shop, tmp_path):
    how = ["--store", shop, "--common", "factors", *FAST]
    done = call("simulate", bert, rows[0], *how, "--out", tmp_path / "run")
    assert done.exit_code == 0, done.exception
    told = json.loads((tmp_path / "run" / "run.json").read_text())
    sites = 2  # blocks of the tiny model, each with one matrix of 2 x 2; and the head
    assert (told["adapter"], told["travels"]) == ("lora-xs", sites * 4 + 3 * 32 + 3)
    host = open_host(bert, dtype="float32")
    made = host.load_from(Commons(tmp_path / "run" / "store"), "global")
    first = host.load_from(Commons(shop), "first")
    assert {u.site for u in made.plan.uses} == {u.site for u in first.plan.uses}
    for name in first.common.pools:
        assert torch.equal(made.pools[name], first.pools[name])
    done = call("simulate", bert, rows[0], *how, "--private", "*head*", "--out", tmp_path / "own")
    assert done.exit_code == 0, done.exception
    late = host.load_from(Commons(tmp_path / "own" / "store"), "client-0")
    assert late.common is not None and sum(p.numel() for p in late.parameters()) == told["travels"]
    other = ["-o", "adapter=lora", "-o", "rank=2"]
    with pytest.raises(CommonweightError, match="factors"):
        app(["exchange", "simulate", str(bert), str(rows[0]), *map(str, how), *other, "--out", str(tmp_path / "o")],
            standalone_mode=False)  # fmt: skip
    assert not (tmp_path / "o").exists()


def test_a_run_goes_on_beside_the_same_common_alone(bert, rows, shop, tmp_path, monkeypatch):
    from commonweight.exchange import setting

    how = [str(bert), str(rows[0]), "--store", str(shop), "--common", "factors", *FAST, "--out", str(tmp_path / "run")]
    app(["exchange", "simulate", *how], standalone_mode=False)
    monkeypatch.setattr(setting, "_content", lambda tenant: "factors 0123456789abcdef")
    with pytest.raises(CommonweightError, match=r'common: then "factors .*, now "factors 0123'):
        app(["exchange", "simulate", *how, "--resume"], standalone_mode=False)


def test_files_are_clients(bert, tmp_path):
    files = [tiny.tsv(tmp_path / f"{k}.tsv", tiny.rows(9, k), True) for k in range(3)]
    out = tmp_path / "run"
    done = call("simulate", bert, *files, "--split", "files", "--rounds", 1, "--dtype", "float32", "--out", out)
    assert done.exit_code == 0, done.exception
    assert [c["rows"] for c in json.loads((out / "run.json").read_text())["clients"].values()] == [9, 9, 9]


def test_methods_are_listed():
    everything = call("methods").stdout
    for name in ("fedavg", "fed-sb", "ffa-lora"):
        assert name in everything
    one = call("methods", "fed-sb").stdout
    assert "rank" in one and "the server keeps" in one


@pytest.mark.parametrize(
    ("more", "what"),
    [
        (["-m", "fed-bs"], "unknown exchange method 'fed-bs'; did you mean 'fed-sb'"),
        (["-m", "fed-sb", "-o", "rnk=2"], "option of FedSB 'rnk'; did you mean 'rank'"),
        (["-o", "adapter=lora", "-o", "dim=2"], "option of LoRA 'dim'"),
        (["--clients", "0"], "clients is 0; it must be >= 1"),
        (["--sample", "9", "--clients", "4"], "sample=9 of 4 clients; wanted at most 4"),
        (["--split", "drichlet:1"], "unknown split"), (["--task", "dpo"], "unknown task"),
        (["--common", "x"], "--common x: which store has it"), (["--store", "x"], "--store is that of --common"),
        (["--common", "x", "--store", "no-such"], "no-such"),
        (["--codec", "int3"], "unknown codec of exchange 'int3'"), (["--codec-down", "compeft"], "one of changes"),
        (["--codec", "compeft:density=2"], "density is 2"), (["--codec-feedback", "server"], "codec_feedback"),
        (["-m", "frl", "--codec", "int8"], "codec=int8: frl cannot: clients send rankings"),
        (["--lr", "0"], "lr is 0"), (["--clients", "41"], "41 clients for 40 rows"),
    ],
)  # fmt: skip
def test_what_cannot_be(bert, rows, tmp_path, more, what):
    with pytest.raises(CommonweightError, match=what):
        app(
            ["exchange", "simulate", str(bert), str(rows[0]), "--out", str(tmp_path / "o"), *more],
            standalone_mode=False,
        )
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("more", "what"),
    [
        ([], "--resume goes on"),
        (["--overwrite"], "no run of exchange"),
        (["--split", "iid:3", "--out", "{}/new"], "no value"),
        (["--holdout", "1.5", "--out", "{}/new"], "holdout=1.5: wanted a share"),
        (["-m", "frl", "--codec", "int8", "--out", "{}/new"], "codec=int8: frl cannot: clients send rankings"),
    ],
)
def test_what_cannot_be_is_said_before_the_base_is_opened(bert, rows, tmp_path, monkeypatch, more, what):
    monkeypatch.setattr("commonweight.adapt.base.open_host", lambda *_, **__: pytest.fail("opened"))
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(CommonweightError, match=what):
        given = ["--out", str(tmp_path), *(word.format(tmp_path) for word in more)]
        app(["exchange", "simulate", str(bert), str(rows[0]), *given], standalone_mode=False)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    ("more", "what"),
    [
        (["--clients", "41"], "41 clients for 40 rows"), (["--split", "column:hospital"], "column:NAME of a column"),
        (["--split", "labels:30", "--clients", "3"], "90 shards of 40 rows"), (["--label-column", "topic"], "topic"),
        (["--split", "files"], "wanted rows of several files"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("verb", ["simulate", "app"])
def test_what_rows_do_not_allow_is_said_before_the_base_is_opened(bert, rows, tmp_path, monkeypatch, verb, more, what):
    if verb == "app":
        more = [
            f"--set={a.removeprefix('--')}={b}" if a == "--split" else f"{a}={b}" for a, b in zip(more[::2], more[1::2])
        ]
        own = "give each node its own file"
        what = own if "--set=split=files" in more else what if "topic" in what else f"{what}.*give --labels in place"
    monkeypatch.setattr("commonweight.adapt.base.open_host", lambda *_, **__: pytest.fail("opened"))
    with pytest.raises(CommonweightError, match=what):
        app(["exchange", verb, str(bert), str(rows[0]), "--out", str(tmp_path / "o"), *more], standalone_mode=False)
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("which", ["train", "eval"])
def test_a_wrong_row_is_one_of_its_file(bert, rows, tmp_path, which):
    wrong = tmp_path / "wrong.tsv"
    wrong.write_text("label\ttext\nlaw\tcourt\n" + ("sport\t\n" if which == "train" else "war\tcourt\n"))
    files = [str(wrong)] if which == "train" else [str(rows[0]), "--eval", str(wrong)]
    with pytest.raises(CommonweightError, match=r"wrong\.tsv: row 2: "):
        app(
            ["exchange", "simulate", str(bert), *files, "--clients", "2", "--out", str(tmp_path / "o")],
            standalone_mode=False,
        )


def test_a_run_of_which_parts_are_missing_has_no_page(tmp_path):
    (tmp_path / "run.json").write_text('{"curve": [], "method": "fedavg"}')
    with pytest.raises(CommonweightError, match=r"run\.json: cannot be read as a run \(it says nothing of paper"):
        app(["exchange", "report", str(tmp_path)], standalone_mode=False)


@pytest.mark.parametrize(
    ("part", "says"),
    [
        ({"curve": [1]}, "one of its curve is 1; wanted one with round, clients, replies"),
        ({"curve": [{"round": 0}]}, r"one of its curve is \{'round': 0\}; wanted"),
        ({"clients": "x"}, "clients has no names and values"),
        ({"clients": {"0": {}}}, r"one of its clients is \{\}; wanted one with rows"),
        ({"rounds": None}, "rounds has no names and values"),
    ],
)
def test_a_run_of_which_a_part_is_another_thing_has_no_page(tmp_path, part, says):
    whole = {**dict.fromkeys(run.KEYS, ""), "curve": [], "rounds": {}, "clients": {}}
    (tmp_path / "run.json").write_text(json.dumps(whole))
    assert run.read(tmp_path) == whole
    (tmp_path / "run.json").write_text(json.dumps({**whole, **part}))
    with pytest.raises(CommonweightError, match=rf"run\.json: cannot be read as a run \({says}"):
        run.read(tmp_path)


def test_a_mistake_ends_with_2(bert, tmp_path, capsys):
    with pytest.raises(SystemExit) as e:
        main(["exchange", "report", str(tmp_path)])
    assert e.value.code == 2 and "no run.json there" in capsys.readouterr().err
