"""The comparison's results as they are kept with the sources: small, and enough for the pages that read them."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.compare import INTRODUCTION, dumped, small

DOCS = Path(__file__).parents[1] / "docs" / "results"


def test_curves_are_left_out_and_figures_stay():
    run = {"task": "a", "seed": 0, "state": "done", "test": {"accuracy": 0.5}, "curve": [{"step": 1}], "command": "x"}
    point = {"method": "lora", "bytes": 3, "values": {"a": {"mean": 0.5}}, "cells": ["1"], "trials": {}, "runs": [run]}
    found = json.loads(dumped(small({"version": "1", "misfits": [], "points": [point, point]})))
    left = {k: v for k, v in run.items() if k != "curve"}
    assert found["points"][1] == {"method": "lora", "bytes": 3, "values": {"a": {"mean": 0.5}}, "runs": [left]}
    assert found["version"] == "1" and found["misfits"] == []


def test_what_is_kept_is_small_and_of_its_page():
    file = DOCS / "compare" / "results.json"
    assert file.stat().st_size < 300_000
    results = json.loads(file.read_text("utf-8"))
    assert dumped(small(results)) == file.read_text("utf-8")
    page = (DOCS / "compare.md").read_text("utf-8")
    assert INTRODUCTION.partition("{command}")[2] in page and f"{results['headline']}." in page
    assert all(f"| `{p['name']}` | {p['bytes']:,} |" in page for p in results["points"])
