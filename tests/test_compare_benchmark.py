"""The page of the comparison: its table is that of its data, and rows that are run anew take their places in it."""

import json

from benchmarks import renewed
from benchmarks.compare import RESULTS

FOUND = json.loads((RESULTS / "compare" / "results.json").read_text("utf-8"))


def test_the_table_is_that_of_the_data():
    page = (RESULTS / "compare.md").read_text("utf-8")
    assert renewed.table(FOUND) in page


def test_rows_that_were_run_anew():
    ours = [p for p in FOUND["points"] if p["method"] == "corda"]
    same = {"comparison": {"methods": ["corda"]}, "points": ours, "misfits": [], "left_out": []}
    small = [m for m in FOUND["misfits"] if m["method"] == "corda"]
    assert renewed.merged(FOUND, {**same, "misfits": small}) == FOUND
    best = {t: {**v, "mean": 1.0, "seeds": [1.0] * 3} for t, v in ours[0]["values"].items()}
    new = renewed.merged(FOUND, {**same, "points": [{**ours[0], "bytes": 1, "values": best, "difference": None}]})
    assert [p["method"] for p in new["points"] if p["front"]] == ["corda", "probe"]
    found = next(p for p in new["points"] if p["method"] == "corda")
    lora = max((p for p in FOUND["points"] if p["method"] == "lora"), key=lambda p: p["bytes"])
    assert abs(found["difference"]["mean"] - (1 - lora["values"]["mean of tasks"]["mean"])) < 1e-9
    assert not [m for m in new["misfits"] if m["method"] == "corda"]


def test_what_the_comparison_fixed_of_a_method():
    assert renewed.options(FOUND, ["lora", "alora"]) == ["-o", "alora.rank=2"]
