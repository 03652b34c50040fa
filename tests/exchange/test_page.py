"""The page of a run, beside others and half done."""

import json

import pytest

from commonweight.core import CommonweightError
from commonweight.exchange import report, simulate
from commonweight.exchange.run import free
from tests.adapt import tiny
from tests.exchange import small

RECIPE = {"clients": 2, "rounds": 2, "batch_size": 8}


def test_runs_of_one_name_are_two_lines_and_the_page_is_the_first_one_s(bert, tmp_path):
    for place, rank in (("a", 2), ("b", 4)):
        simulate(
            small.prepared_host(bert), tiny.rows(12), method="fed-sb", options={"rank": rank}, eval_rows=tiny.rows(6),
            out=tmp_path / place / "r", **RECIPE,
        )  # fmt: skip
    text = report(tmp_path / "a" / "r", [tmp_path / "b" / "r"]).read_text()
    assert "rank=2" in text and "rank=4" not in text
    assert "fed-sb (r)" in text and f"fed-sb ({tmp_path / 'b' / 'r'})" in text


def test_a_run_that_goes_on(bert, tmp_path):
    """After the first round, and before it."""
    simulate(small.prepared_host(bert), tiny.rows(12), method="fed-sb", out=tmp_path, eval_rows=tiny.rows(6), **RECIPE)
    found = json.loads((tmp_path / "run.json").read_text())
    for n in (1, 0):
        found["curve"] = found["curve"][:n]
        (tmp_path / "run.json").write_text(json.dumps(found))
        assert f"{n} of 2" in report(tmp_path).read_text()


def test_no_run(tmp_path):
    with pytest.raises(CommonweightError, match=r"no run\.json there"):
        report(tmp_path)


@pytest.mark.parametrize("split", ["column:label", "files"])
def test_a_number_of_clients_that_the_split_does_not_make(bert, split):
    host = small.prepared_host(bert)
    with pytest.raises(CommonweightError, match="it makes 3 clients, not 7; leave clients out"):
        simulate(host, tiny.rows(12), split=split, clients=7, files=[i % 3 for i in range(12)])
    with pytest.raises(CommonweightError, match=r"sample=50 of 16 clients; .* give that as clients"):
        simulate(host, tiny.rows(12), split=split, sample=50, files=[i % 3 for i in range(12)])


def test_a_folder_that_cannot_be_written_is_told_before_the_base_is_opened(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(CommonweightError, match="is a file; wanted a folder"):
        free(tmp_path / "file" / "more" / "out", resume=False, overwrite=False)


@pytest.mark.parametrize("how", ["resume", "overwrite"])
def test_a_folder_of_something_else_is_neither_gone_on_with_nor_replaced(tmp_path, how):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(CommonweightError, match="not empty, and no run of exchange"):
        free(tmp_path, resume=how == "resume", overwrite=how == "overwrite")


def test_a_model_without_a_finite_loss_is_a_run_all_the_same(bert, tmp_path):
    """Steps so long that the server's numbers are finite and their loss is not: JSON has no NaN."""
    run = simulate(
        small.prepared_host(bert), tiny.rows(12), method="one-byte", options={"rank": 2, "rate": 1e30},
        eval_rows=tiny.rows(6), out=tmp_path, **RECIPE,
    )  # fmt: skip
    assert run.curve[1]["refused"] == {"not finite": 2} and "loss" not in run.curve[1]
    text = (tmp_path / "run.json").read_text()
    assert "NaN" not in text and "Infinity" not in text
    assert (tmp_path / "store").is_dir() and report(tmp_path).is_file()
