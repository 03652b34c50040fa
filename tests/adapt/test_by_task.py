"""adapt with a column of tasks: one tenant, a routing for each task."""

import pytest
import torch

import commonweight as cw
from commonweight.adapt import adapt, evaluate, open_host
from tests.adapt import tiny

POLY = {"tasks": "one,two", "skills": 2, "rank": 2}
FAST = {"lr": 1e-2, "epochs": 4, "batch_size": 8, "method": "poly", "options": POLY, "task_column": "of"}


@pytest.fixture
def host(bert):
    return open_host(bert, "classify", dtype="float32")


def rows(n, seed=0):
    """The second task calls the same words by other names."""
    turned = {"law": "sport", "sport": "food", "food": "law"}
    made = [{**r, "of": "two" if i % 2 else "one"} for i, r in enumerate(tiny.rows(n, seed))]
    return [{**r, "label": turned[r["label"]]} if r["of"] == "two" else r for r in made]


def test_rows_are_trained_and_measured_by_their_task(host):
    result = adapt(host, "t", rows(20), dev_rows=rows(16, 1), **{**FAST, "epochs": 2})
    assert result.steps == 6 and result.metrics["n"] == 16
    logits = next(p for n, p in result.tenant.named_parameters() if n.endswith("logits"))
    assert logits.shape == (2, 1, 2) and not torch.equal(logits[0], logits[1])
    both = evaluate(host, "t", rows(20, 2), task_column="of")
    each = [
        evaluate(host, "t", [{**r, "of": k} for r in rows(20, 2) if r["of"] == k], task_column="of")
        for k in ("one", "two")
    ]
    assert both["loss"] == pytest.approx(sum(m["loss"] for m in each) / 2, rel=1e-4)


def test_a_run_repeats_itself(host):
    a = adapt(host, "a", rows(16), **{**FAST, "epochs": 1}).tenant
    b = adapt(host, "b", rows(16), **{**FAST, "epochs": 1}).tenant
    assert all(torch.equal(a.pools[n], b.pools[n]) for n in a.pools)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task_column": None}, "poly goes by tasks, one, two, and no column of the rows says which; name it"),
        ({"options": {"tasks": "one"}}, "unknown task in the column of tasks 'two'"),
        ({"options": {}}, "task_column: poly knows no tasks as it was asked for; give tasks=one,two to poly, cpoly or"),
        ({"task_column": "off"}, "unknown task column 'off'; did you mean 'of'"),
        ({"task": "lm"}, "task_column: rows of the task lm are not told by tasks; only those of classify are"),
    ],
)  # fmt: skip
def test_what_is_refused(host, change, message):
    with pytest.raises(cw.CommonweightError, match=message):
        adapt(host, "t", rows(8), **{**FAST, **change})
    assert "t" not in host


def test_the_plain_base_is_measured_by_no_task(host):
    with pytest.raises(cw.CommonweightError, match="task_column: the plain base knows no tasks; leave the column out"):
        evaluate(host, None, rows(2), labels=("law", "sport", "food"), task_column="of")


def test_a_row_without_its_task(host):
    with pytest.raises(cw.CommonweightError, match="row 2: 'of' is None; wanted a task's name"):
        adapt(host, "t", [rows(2)[0], {**rows(2)[1], "of": None}], **FAST)
