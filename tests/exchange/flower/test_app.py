"""The folder of an app; Flower itself is not needed for it."""

import tomllib

import pytest
from typer.testing import CliRunner

from commonweight.cli import app as cli
from commonweight.core import CommonweightError
from commonweight.exchange.flower import app
from commonweight.exchange.flower.config import opened
from tests.adapt import tiny


def config_of(folder):
    return tomllib.loads((folder / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"]


def test_the_command(bert, tmp_path):
    rows = tiny.jsonl(tmp_path / "rows.jsonl", tiny.rows(12))
    line = ["exchange", "app", str(bert), str(rows), "-m", "fed-sb", "-o", "rank=4", "--clients", "3"]
    done = CliRunner().invoke(cli, [*line, "--set", "lr=0.02", "--set", "sample=2", "--out", str(tmp_path / "My app")])
    assert done.exit_code == 0, done.output
    text = (tmp_path / "My app" / "pyproject.toml").read_text()
    assert tomllib.loads(text)["project"]["name"] == "my-app"
    config = config_of(tmp_path / "My app")
    wanted = {"clients": 3, "sample": 2, "lr": 0.02, "options": '{"rank": 4}', "method": "fed-sb", "rows": str(rows)}
    assert {k: config[k] for k in wanted} == wanted
    p = opened(config).prepared
    assert (p.setting.clients, p.plan.sample, p.local.lr, p.setting.config.rank) == (3, 2, 0.02, 4)
    assert list(p.task.labels or ()) == sorted({r["label"] for r in tiny.rows(12)}) and p.setting.run == config["run"]


def test_what_cannot_be(bert, tmp_path):
    rows = str(tiny.jsonl(tmp_path / "rows.jsonl", tiny.rows(12)))
    for more, what in (
        ({"rows": rows, "vanish": 0.3}, "vanish: only exchange simulate has that"),
        ({"rows": rows, "split": "files"}, "give each node its own file"),
        ({"rows": rows, "method": "frl", "floats": True}, "floats: frl cannot: clients send rankings"),
        ({"rows": rows, "method": "mezo", "dp_clip": 1.0}, "dp_clip: mezo cannot: "),
        ({}, "every side must know the labels"),
        ({"rows": rows, "method": "fed-sb", "options": {"rank": 0}}, "rank is 0"),
    ):
        with pytest.raises(CommonweightError, match=what):
            app(str(bert), tmp_path / "app", **{"method": "fedavg", **more})
        assert not (tmp_path / "app").exists()
    app(str(bert), tmp_path / "app", labels=["a", "b"])
    with pytest.raises(CommonweightError, match="--overwrite replaces the app"):
        app(str(bert), tmp_path / "app", labels=["a", "b"])
    with pytest.raises(CommonweightError, match="the app's config has no model, method, run, clients"):
        opened({})


@pytest.mark.parametrize(
    ("more", "what"),
    [
        ({"wait": -1.0}, "wait=-1"), ({"timeout": float("nan")}, "timeout=nan"), ({"timeout": 0.0}, "timeout=0"),
        ({"split": "column:label", "clients": 9}, "it makes 3 clients, not 9"),
        ({"split": "column:label", "sample": 9}, "sample=9 of 3 clients"),
    ],
)  # fmt: skip
def test_numbers_that_cannot_be(bert, tmp_path, more, what):
    rows = str(tiny.jsonl(tmp_path / "rows.jsonl", tiny.rows(12)))
    with pytest.raises(CommonweightError, match=what):
        app(str(bert), tmp_path / "app", rows=rows, **more)
    assert not (tmp_path / "app").exists()
