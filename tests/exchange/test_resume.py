"""The server is killed at any moment and goes on to the same bits."""

import json
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from commonweight.core import CommonweightError
from commonweight.exchange import simulate
from commonweight.exchange.checkpoint import Kept
from commonweight.exchange.registry import State
from tests import apart
from tests.adapt import tiny
from tests.exchange import small

ROOT = Path(__file__).parents[2]
RECIPE = {"clients": 3, "rounds": 3, "batch_size": 4, "lr": 1e-2}


def test_killed_and_resumed(bert, tmp_path):
    """Between a client's own file and the server's, with private pools and dropout in the adapter."""
    done = apart.run("-m", "tests.exchange.killed", tmp_path, bert, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    whole, *rest = json.loads(done.stdout.splitlines()[-1])
    assert whole["signal"] == 0 and whole["digest"]
    for killed, resumed in zip(rest[::2], rest[1::2], strict=True):
        assert killed["signal"] == signal.SIGKILL and killed["digest"] is None
        assert resumed == whole, "other bits"
    assert len(set(whole["clients"])) == len(whole["clients"]), "two files of a client"


def test_a_run_of_other_settings_is_not_resumed(bert, tmp_path):
    rows = tiny.rows(20)
    simulate(small.prepared_host(bert), rows, method="fed-sb", out=tmp_path / "o", **RECIPE)
    with pytest.raises(CommonweightError, match=r"other settings .*lr: then 0.01, now 0.1"):
        simulate(
            small.prepared_host(bert), rows, method="fed-sb", out=tmp_path / "o", resume=True, **{**RECIPE, "lr": 0.1}
        )
    with pytest.raises(CommonweightError, match=r"other settings .options.rank: then not given, now 4"):
        more = {"method": "fed-sb", "options": {"rank": 4}, "out": tmp_path / "o", "resume": True}
        simulate(small.prepared_host(bert), rows, **more, **RECIPE)
    with pytest.raises(CommonweightError, match=r"other settings .*rows: then .20 rows"):
        others = tiny.rows(20, seed=1)
        simulate(small.prepared_host(bert), others, method="fed-sb", out=tmp_path / "o", resume=True, **RECIPE)
    with pytest.raises(CommonweightError, match="not empty; --resume goes on"):
        simulate(small.prepared_host(bert), rows, method="fed-sb", out=tmp_path / "o", **RECIPE)


def test_a_state_that_is_damaged_is_told(bert, tmp_path):
    rows = tiny.rows(20)
    simulate(small.prepared_host(bert), rows, method="fed-sb", out=tmp_path / "o", **RECIPE)
    (tmp_path / "o" / "state" / "server.safetensors").write_bytes(b"x" * 40)
    with pytest.raises(CommonweightError, match="is damaged"):
        simulate(small.prepared_host(bert), rows, method="fed-sb", out=tmp_path / "o", resume=True, **RECIPE)


@pytest.mark.parametrize("how", ["cut", "gone", "a bit", "other numbers"])
@pytest.mark.parametrize("whose", ["server", "clients/0.1"])
def test_files_that_are_damaged_are_told_by_name(bert, tmp_path, whose, how):
    """In any bit, and where it is a good file of something else."""
    kept, private = Kept(tmp_path), {"a": torch.ones(3)}
    for round in range(2):
        kept.keep(0, round, private)
        kept.commit(State({"a": torch.zeros(100)}), {"round": round})
    path = tmp_path / f"{whose}.safetensors"
    data = bytearray(path.read_bytes())
    if how == "gone":
        path.unlink()
    elif how == "other numbers":
        path.write_bytes(save({"a": torch.full((3,), 2.0)}, {"digest": "0" * 16}))
    else:
        data[-3] ^= 4
        path.write_bytes(data[: len(data) - 8 * (how == "cut")])
    again = Kept(tmp_path)
    if (whose, how) == ("server", "gone"):
        assert again.read() is None
        return
    with pytest.raises(
        CommonweightError, match=f"{whose}.safetensors: (the state of this run|what client 0 kept) is d"
    ):
        again.read()
        again.of(0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"options": {"rank": 999}},
        {"sites": "nothing.like.it"},
        {"lr": -1.0},
        {"method": "diloco", "options": {"fragments": 9}},
        {"method": "legend", "options": {"seconds": (1.0,) * 9}},
    ],
)
def test_what_cannot_be_run_replaces_no_run(bert, tmp_path, wrong):
    rows, out = tiny.rows(20), tmp_path / "o"
    simulate(small.prepared_host(bert), rows, method="fed-sb", out=out, **RECIPE)
    before = {p.relative_to(out): p.read_bytes() for p in out.rglob("*") if p.is_file()}
    with pytest.raises(CommonweightError):
        simulate(small.prepared_host(bert), rows, out=out, overwrite=True, **{"method": "fed-sb", **RECIPE, **wrong})
    assert {p.relative_to(out): p.read_bytes() for p in out.rglob("*") if p.is_file()} == before
