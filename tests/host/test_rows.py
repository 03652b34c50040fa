"""Rows that a method begins from: what is said of those that are missing, and of those that cannot be read."""

import numpy as np
import pytest
import torch

import commonweight as cw
from commonweight.methods.shown import KINDS, LABELLED, NO_ROWS
from tests.models import make

IDS = torch.arange(3, 11).view(2, 4)
ROW = {"input_ids": IDS, "labels": IDS}
SILENT = {**ROW, "labels": torch.full_like(IDS, -100)}
NAN = {"inputs_embeds": torch.full((2, 3, 32), float("nan")), "labels": torch.ones(2, 3).long()}
BY_LOSS = [
    ("fish", {"ratio": 0.1}), ("lora-ga", {"rank": 2}), ("lora-sb", {"rank": 2}), ("sparse-adapter", {"size": 4}),
]  # fmt: skip


@pytest.fixture(scope="module")
def host():
    return cw.Host(make("llama")[0], sites="*.0.self_attn.*|*.0.mlp*|*.0.*norm|*.layers.0")


def refused(host, method, match, rows, **options):
    with pytest.raises(cw.CommonweightError, match=match):
        host.add("t", method, rows=rows, **options)
    assert not [*host]


def test_kinds_stand_alone():
    assert not [k for k, text in KINDS.items() if "as above" in text or "the same" in text or "that loss" in text]
    assert {*LABELLED, *NO_ROWS} <= {*KINDS}


@pytest.mark.parametrize(
    ("method", "options", "keys"),
    [
        ("salora", {}, r"\(input_ids, attention_mask, \.\.\.\)"),
        ("sparse-adapter", {"score": "grasp"}, r"\(input_ids, attention_mask, \.\.\., labels\)"),
        ("sct", {"place": "stream"}, r"\(input_ids, attention_mask, \.\.\.\)"),
    ],
)
def test_which_rows_are_wanted(host, method, options, keys):
    said = "".join(f" with {k}='{v}'" for k, v in options.items())
    match = rf"^{method}{said} begins from data: .* give rows=, a list of batches .* {keys}, or take start='random'$"
    refused(host, method, match, None, **options)


@pytest.mark.parametrize(
    ("rows", "match"),
    [
        ("abc", r"rows: 'abc' \(str\) came; wanted a list of batches, \[\{\"input_ids\""),
        (3, r"rows: 3 \(int\) came; wanted a list of batches"),
        (IDS, r"rows: tensor\(.* \(Tensor\) came; wanted a list of batches"),
        (ROW, r"rows: one batch came, input_ids \(2, 4\), labels \(2, 4\); wanted a list of them: rows=\[...\]"),
        ([[1, 2]], r"rows: batch 0 is \[1, 2\] \(list\); wanted the model's inputs"),
        ([ROW, {}], r"rows: batch 1 is \{\} \(dict\); wanted the model's inputs"),
        (
            [{"input_ids": np.ones((1, 3))}],
            r"rows: batch 0 has input_ids as a ndarray; wanted a tensor: torch.as_tensor",
        ),
        ([{"input_ids": [[1, 2]]}], r"rows: batch 0 has input_ids as a list; wanted a tensor"),
        ([{"words": IDS}], r"rows: the model cannot read a batch of words \(2, 4\): .*; wanted its inputs"),
        ([{"input_ids": IDS, "labels": IDS[:1]}], r"rows: .*labels \(1, 4\)"),
    ],
)
def test_what_is_no_list_of_batches(host, rows, match):
    refused(host, "lora-ga", match, rows, rank=2)


@pytest.mark.parametrize(("method", "options"), BY_LOSS)
def test_rows_that_score_nothing(host, method, options):
    refused(host, method, "rows: all labels of the 2 rows are -100, so that they score nothing", [SILENT], **options)


def test_a_batch_that_scores_nothing_counts_for_nothing(host):
    kept = []
    for rows in ([ROW], [SILENT, ROW]):
        kept.append(host.add("t", "fish", ratio=0.1, rows=rows).pools)
        host.remove("t")
    assert all(torch.equal(p, kept[1][n]) for n, p in kept[0].items())


@pytest.mark.parametrize(("method", "options"), [*BY_LOSS, ("sct", {}), ("corda", {"rank": 2}), ("eva", {"rank": 2})])
def test_rows_with_nan(host, method, options):
    refused(host, method, "rows: batch 0 has NaN in inputs_embeds; mend or leave out", [NAN], **options)


def test_a_model_that_makes_nan():
    host = cw.Host(make("llama")[0], sites="*.0.self_attn.q_proj")
    with torch.no_grad():
        host.model.get_parameter("model.layers.0.input_layernorm.weight").fill_(float("nan"))
    refused(host, "fish", r"rows: the loss of a batch of input_ids \(1, 4\), labels \(1, 4\) is nan", [ROW], ratio=0.1)
    refused(host, "corda", r"layers\.0\.self_attn\.q_proj: what the rows say of it holds NaN", [ROW], rank=2)


def test_rows_of_padding_alone(host):
    rows = [{**ROW, "attention_mask": torch.zeros_like(IDS)}]
    refused(host, "eva", "rows: no token of them is no padding; give others", rows, rank=2)
    refused(host, "sct", "rows: no token of them is no padding; give others", rows)
    with pytest.raises(cw.CommonweightError, match="no token of them is no padding and has a label; give others"):
        host.add("t", "salora", rank=2, rows=[ROW], retain=[SILENT])
