"""The comparison's results as they are kept with the sources: small, and enough for the pages that read them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.compare import INTRODUCTION, below, dumped, earlier, small, table
from benchmarks.elsewhere import page as elsewhere
from benchmarks.sharing import page as sharing
from benchmarks.sharing.fit import bytes_of, fitted
from benchmarks.sharing.front import front, picture
from benchmarks.sharing.rivals import from_nothing, quantised, rounded
from commonweight.builder import anatomy
from commonweight.share.cost import original

DOCS = Path(__file__).parents[1] / "docs" / "results"


def test_curves_are_left_out_and_figures_stay():
    run = {"task": "a", "seed": 0, "state": "done", "test": {"accuracy": 0.5}, "command": "x", "seconds": 1.0}
    more = {**run, "test": {"accuracy": 0.5, "loss": 0.1}, "curve": [{"step": 1}], "seconds": 1.04, "steps": 3}
    point = {
        "method": "lora",
        "bytes": 3,
        "values": {"a": {"mean": 0.5}},
        "cells": ["1"],
        "trials": {},
        "runs": [more, more],
    }
    found = json.loads(dumped(small({"version": "1", "metric": "accuracy", "misfits": [], "points": [point, point]})))
    left = [run, {k: v for k, v in run.items() if k != "command"}]
    assert found["points"][1] == {"method": "lora", "bytes": 3, "values": {"a": {"mean": 0.5}}, "runs": left}
    assert found["version"] == "1" and found["misfits"] == []


def test_what_is_kept_is_small_and_of_its_page():
    file = DOCS / "compare" / "results.json"
    assert file.stat().st_size < 500_000
    results = json.loads(file.read_text("utf-8"))
    assert dumped(small(results)) == file.read_text("utf-8")
    page = (DOCS / "compare.md").read_text("utf-8")
    assert INTRODUCTION.partition("{command}")[2] in page and f"{results['headline']}." in page
    assert all(f"| `{p['name']}` | {p['bytes']:,} |" in page for p in (*results["points"], *results["earlier"]))


def test_what_was_not_run_again_stays_under_its_own_title():
    a, b, c = ({"name": n, "method": n, "bytes": 1000} for n in "abc")
    for p in (a, b, c):
        p |= {"marginal_bytes": 0, "parameters": 1, "values": {}}
    left = earlier({"points": [{**a, "runs": []}, {**b, "runs": []}], "earlier": [c]}, {"a"})
    assert left == [b, c]
    page = [
        "| method | bytes | x |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        "| `a` | 1,000 |",
        "| `b` | 1,000 | 7 |",
    ]
    assert table(left, [*page, "| `c` | 1,000 | 8 |"]).splitlines()[-2:] == [
        "| `b` | 1,000 | 7 |",
        "| `c` | 1,000 | 8 |",
    ]
    assert table([], page) == ""


def test_what_is_far_below_is_named_with_a_reason():
    points = [
        {"name": f"{n} x=1", "method": n, "difference": d}
        for n, d in [("lora", None), ("coda", {"mean": -0.031}), ("lst", {"mean": -0.02})]
    ]
    assert below(points).splitlines()[3].startswith(
        "- `coda x=1`, -3.1 points: half of the tokens"
    ) and "lst" not in below(points)
    assert below(points[:1]) == "" and below(
        json.loads((DOCS / "compare" / "results.json").read_text("utf-8"))["points"]
    ) in (DOCS / "compare.md").read_text("utf-8")


def test_methods_without_a_site_there_are_measured_elsewhere():
    parts = elsewhere.kept()
    left = {x["method"] for x in json.loads((DOCS / "compare" / "results.json").read_text("utf-8"))["left_out"]}
    assert parts and set(parts) <= left, "what the encoder has no site for stands on a model of its own"
    assert elsewhere.dumped(parts) == elsewhere.DATA.read_text("utf-8")
    page = elsewhere.PAGE.read_text("utf-8")
    assert elsewhere.put(page, parts) == page and page.count(elsewhere.TITLE) == 1
    assert elsewhere.put("above\n", {}) == "above\n"
    for name, part in parts.items():
        methods = {p["method"] for p in part["points"]}
        assert {name, "lora"} <= methods and ("probe" in methods or "--task lm" in part["command"])
        assert all(len(p["values"][t]["seeds"]) == 3 for p in part["points"] for t in elsewhere.TASKS)


def test_a_language_model_is_compared_by_the_share_of_right_answers():
    def point(method, shares):
        tests = [
            {"task": t, "test": {"n": 100, "token_accuracy": x, "loss": 1.0}} for x in shares for t in elsewhere.TASKS
        ]
        return {"method": method, "runs": tests, "values": {}, "difference": None}

    given = [point("pema", [0.5, 0.6]), point("lora", [0.4, 0.6])]
    pema, lora = elsewhere.beside(elsewhere.scored(given, "token_accuracy"), "lora")
    assert pema["values"]["mean of tasks"]["seeds"] == pytest.approx((0.5, 0.6)) and lora["difference"] is None
    assert pema["difference"]["mean"] == pytest.approx(0.05) and pema["runs"][0]["test"]["accuracy"] == 0.5
    assert given[0]["values"] == {}


def test_the_page_of_sharing_is_that_of_its_runs():
    found = json.loads(sharing.DATA.read_text("utf-8"))
    assert sharing.page(found) == sharing.PAGE.read_text("utf-8") and found["runs"]
    for run in found["runs"].values():
        assert 0.7 * run["target"] < run["share"] <= 1.02 * run["target"] or run["kind"] != "share"


def test_the_front_has_what_nothing_beats():
    points = [("a", "share", 0.5, 70.0), ("b", "share", 0.3, 60.0), ("c", "bits", 0.4, 55.0), ("d", "share", 0.5, 71.0)]
    assert [p[0] for p in front(points, more=True)] == ["b", "d"]
    assert [p[0] for p in front(points, more=False)] == ["b", "c"]
    assert "d</text>" in picture("t", "accuracy", 72.0, points, more=True)
    assert "<svg" in picture("t", "accuracy", 72.0, [], more=True)


def test_every_method_comes_near_to_the_bytes_from_below():
    about = anatomy(tiny())
    whole = original(about).nbytes
    found = fitted(about, 0.5)
    assert {"drop", "recursive"} <= {f.method for f in found}
    assert all(0.75 * 0.5 * whole <= f.bytes <= 1.02 * 0.5 * whole for f in found)
    relaxed = next(f for f in found if f.options.get("relax"))
    more = {**relaxed.options, "relax": relaxed.options["relax"] + 1}
    assert bytes_of(about, "recursive", more) > 1.02 * 0.5 * whole


def test_fewer_bits_are_nearer_to_the_weights_the_more_there_are():
    w = torch.randn(8, 128, generator=torch.Generator().manual_seed(0))
    gaps = [float((rounded(w, bits) - w).abs().max()) for bits in (2, 4, 8)]
    assert gaps[0] > 3 * gaps[1] > 9 * gaps[2] and len(rounded(w, 2)[0, :64].unique()) == 4
    model = tiny()
    about = anatomy(model)
    small, share = quantised(model, about, 4)
    assert 0.25 < share < 0.35 and small is not model
    assert torch.equal(small.lm_head.weight, model.lm_head.weight)
    again = from_nothing(model, about, 2, 0)
    assert len(again.model.layers) == 2 and torch.equal(again.lm_head.weight, model.lm_head.weight)
    assert not torch.equal(again.model.layers[0].mlp.up_proj.weight, model.model.layers[0].mlp.up_proj.weight)


def tiny():
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 12, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(**shape, vocab_size=50, pad_token_id=0))
