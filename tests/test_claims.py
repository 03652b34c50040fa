"""The page of claims: every method has one, every figure is computed, and the verdict follows from figure and bound."""

import json
from pathlib import Path

import gen_claims as gen
import pytest

import commonweight as cw

ROOT = Path(__file__).parents[1]


@pytest.fixture
def results(tmp_path, monkeypatch):
    """Folders for results, empty at first: (benchmarks, docs/results)."""
    folders = tmp_path / "benchmarks", tmp_path / "results"
    monkeypatch.setattr(gen, "BENCHMARKS", folders[0])
    monkeypatch.setattr(gen, "RESULTS", folders[1])
    (folders[1] / "compare").mkdir(parents=True)
    folders[0].mkdir()
    return folders


def test_every_method_has_a_claim_and_every_claim_a_method():
    of = {kind: {c["method"] for c in gen.claims() if gen.of(c) == kind} for kind in ("methods", "lifelong")}
    assert of["methods"] == {*cw.methods.available(), *cw.methods.OVER.available()}
    assert of["lifelong"] <= {*cw.lifelong.available()}


def test_every_claim_has_all_its_parts():
    for c in gen.claims():
        m = c["measure"]
        assert c["claim"] and m["kind"] in gen.KINDS
        assert c["here"] or (m["kind"] == "none" and m["why"])
        assert m["kind"] == "none" or ("at_least" in m) != ("at_most" in m)


def test_the_page_has_a_row_for_every_claim(results):
    rows = [line for line in gen.page().splitlines() if line.startswith("| `")]
    assert len(rows) == len(gen.claims()) and all(row.count(" | ") == 4 for row in rows)
    kinds = {"quality", "share", "cost", "benchmark", "tenants", "stream", "stored"}
    assert sum("not measured yet" in row for row in rows) == sum(c["measure"]["kind"] in kinds for c in gen.claims())


@pytest.mark.parametrize(
    ("method", "shapes", "options", "roles", "numbers"),
    [  # what the papers print
        ("lora", "llama2-7b", {"rank": 64}, "", 159_907_840),
        ("lora", "llama2-13b", {"rank": 64}, "", 250_347_520),
        ("lora", "gpt3", {"rank": 4}, "query|value", 18_874_368),
        ("lora-xs", "llama2-7b", {"rank": 64}, "", 917_504),
        ("vera", "llama2-7b", {"rank": 1024}, "", 1_589_248),
        ("full", "llama2-7b", {}, "", 6_476_005_376),
    ],
)
def test_counts_on_the_papers_shapes(method, shapes, options, roles, numbers):
    assert gen.count(method, shapes, options, roles) == pytest.approx(numbers, rel=1e-3)


def compared(folder, ours, theirs, size=100):
    def point(method, seeds, size=100):
        value = {"mean": sum(seeds) / len(seeds), "half": None, "rows": None, "seeds": seeds}
        return {"method": method, "bytes": size, "parameters": size, "values": {gen.ALL: value}}

    points = [point("lora", theirs), point("dora", ours, size), point("dora", [1.0] * 3, 10)]
    (folder / "compare" / "results.json").write_text(json.dumps({"points": points, "misfits": []}))


@pytest.mark.parametrize(
    ("ours", "verdict"),
    [([0.8, 0.81, 0.82], gen.HOLDS), ([0.6, 0.61, 0.62], gen.FAILS), ([0.6, 0.7, 0.85], gen.OPEN)],
)
def test_the_verdict_follows_from_the_interval(results, ours, verdict):
    compared(results[1], ours, [0.7, 0.71, 0.72])
    claim = {"method": "dora", "measure": {"kind": "quality", "against": "lora", "at_least": 0.0}}
    figure, said = gen.quality(claim)
    assert said == verdict and f"against {71.0:.1f}" in figure, "the largest config counts, not the luckiest"
    low = gen.share({**claim, "measure": {**claim["measure"], "at_least": 0.5}})
    assert low.verdict == gen.HOLDS


def test_more_bytes_are_no_proof_and_fewer_are_asked_for(results):
    claim = {"method": "dora", "measure": {"kind": "quality", "against": "lora", "at_least": 0.0}}
    for ours, size, verdict in (([0.8, 0.81, 0.82], 200, gen.MORE), ([0.6, 0.61, 0.62], 200, gen.FAILS)):
        compared(results[1], ours, [0.7, 0.71, 0.72], size)
        figure, said = gen.quality(claim)
        assert said == verdict and figure.endswith("with 2.0 times the bytes")
    few = {**claim, "measure": {**claim["measure"], "times": 10}}
    assert gen.quality(few) == gen.Verdict(
        "100.0 against 71.0: +29.00 (+26.52 to +31.48), 1/10.0 of the trained numbers", gen.HOLDS
    )
    few["measure"]["times"] = 20
    assert gen.quality(few).verdict == gen.NOT_YET


def test_a_comparison_on_another_model(results):
    claim = {"method": "dora", "measure": {"kind": "quality", "against": "lora", "at_least": 0.0, "in": "esft"}}
    compared(results[1], [0.6, 0.6, 0.6], [0.7, 0.7, 0.7])
    assert gen.quality(claim).verdict == gen.NOT_YET
    found = json.loads((results[1] / "compare" / "results.json").read_text())
    for p in found["points"]:
        p["peak_memory"] = 30 if p["method"] == "dora" else 20
    points = [p for p in found["points"] if p["bytes"] > 10]
    (results[1] / "compare" / "elsewhere.json").write_text(json.dumps({"esft": {"points": points}}))
    assert gen.quality(claim).verdict == gen.FAILS
    for most, verdict in ((1.5, gen.HOLDS), (1.0, gen.FAILS)):
        cost = {"kind": "cost", "against": "lora", "in": "esft", "field": "peak_memory", "at_most": most}
        assert gen.cost({"method": "dora", "measure": cost}) == gen.Verdict("1.50", verdict)


def test_a_form_is_looked_up_by_its_name(results):
    compared(results[1], [0.6, 0.6, 0.6], [0.7, 0.7, 0.7])
    points = json.loads((results[1] / "compare" / "results.json").read_text())["points"]
    ours = {"kind": "quality", "against": "lora", "at_least": 0.0}
    theirs = {**ours, "against": "doRA"}
    claims = {"method": "dora", "form": "doRA", "measure": ours}, {"method": "lora", "measure": theirs}
    assert {gen.quality(c).verdict for c in claims} == {gen.NOT_YET}
    better = [{**p, "values": {gen.ALL: {"mean": 0.8, "seeds": [0.8] * 3}}} for p in points if p["method"] == "dora"]
    form = {"method": "dora", "points": [*better, {**points[0], "bytes": 1000}]}  # lora, run on the form's own base
    (results[1] / "compare" / "forms.json").write_text(json.dumps({"doRA": form}))
    assert [gen.quality(c).verdict for c in claims] == [gen.HOLDS, gen.FAILS]


def test_what_is_not_there_is_not_measured_yet(results):
    claim = {"method": "dora", "measure": {"kind": "quality", "against": "lora", "at_least": 0.0}}
    assert gen.quality(claim).verdict == gen.NOT_YET
    (results[1] / "compare" / "results.json").write_text(json.dumps({"points": [], "misfits": [{"method": "dora"}]}))
    assert gen.quality(claim).verdict == f"{gen.NOT_YET}: `dora` has no config within the budgets"
    bench = {"measure": {"kind": "benchmark", "file": "x", "row": "b", "field": "ratio", "at_most": 1.5}}
    assert gen.benchmark(bench).verdict == gen.NOT_YET


@pytest.mark.parametrize(("spread", "verdict"), [([1, 1.4], gen.HOLDS), ([1.6, 2], gen.FAILS), ([1, 2], gen.OPEN)])
def test_benchmarks(results, spread, verdict):
    rows = [{"what": "a"}, {"what": "RoAd: b", "ratio": 1.2, "spread": spread}]
    (results[0] / "x.json").write_text(json.dumps({"rows": rows}))
    bench = {"measure": {"kind": "benchmark", "file": "x", "row": "b", "field": "ratio", "at_most": 1.5}}
    assert gen.benchmark(bench).verdict == verdict


def test_a_benchmark_of_one_seed_decides_nothing(results):
    row = {"what": "late tenant, b", "difference": -2.7, "spread": [-2.7, -2.7], "seeds": 1}
    (results[0] / "x.json").write_text(json.dumps({"rows": [row]}))
    bench = {"measure": {"kind": "benchmark", "file": "x", "row": "b", "field": "difference", "at_least": -0.5}}
    assert tuple(gen.benchmark(bench)) == ("-2.7 (one seed)", "open: one seed")


def test_ten_thousand_tenants(results):
    claim = {"measure": {"kind": "tenants", "find": "share", "at_most": 0.01}}
    assert gen.tenants(claim).verdict == gen.NOT_YET
    for ratio, verdict in ((0.005, gen.HOLDS), (0.02, gen.FAILS)):
        rows = [{"label": "sharelora", "ratio": 1}, {"label": "share k=32", "ratio": ratio}]
        (results[1] / "ten_thousand.json").write_text(json.dumps({"rows": rows}))
        assert gen.tenants(claim).verdict == verdict


@pytest.mark.parametrize(
    ("others", "verdict"),
    [([], "open: one order"), ([0.7], "open: two orders"), ([0.7, 0.8], gen.HOLDS), ([0.4, 0.4], gen.OPEN)],
)
def test_streams(results, others, verdict):
    claim = {"method": "ewc", "measure": {"kind": "stream", "against": "replay", "field": "average", "at_least": 0.0}}
    assert gen.stream(claim).verdict == gen.NOT_YET
    first = {"ewc": {"average": 0.7}, "replay": {"average": 0.6}}
    (results[1] / "streams.json").write_text(json.dumps(first))
    more = {
        "ewc": {str(i): {"average": a} for i, a in enumerate(others, 1)},
        "replay": {str(i): {"average": 0.5} for i in (1, 2)},
    }
    (results[1] / "streams_orders.json").write_text(json.dumps(more))
    figure, said = gen.stream(claim)
    assert said == verdict and figure.startswith(
        {0: "+10.0", 1: "+15.0"}.get(len(others), "+20.0" if 0.7 in others else "-3.3")
    )


def test_bytes_of_a_stream(results):
    claim = {"method": "share", "measure": {"kind": "stored", "at_most": 0.05}}
    assert gen.stored(claim).verdict == gen.NOT_YET
    for size, average, verdict in ((4, 0.705, gen.HOLDS), (6, 0.705, gen.FAILS), (4, 0.68, gen.FAILS)):
        found = {"share": {"bytes": [1, size], "average": average}, "separate": {"bytes": [9, 100], "average": 0.71}}
        (results[1] / "stream_bytes.json").write_text(json.dumps(found))
        assert gen.stored(claim).verdict == verdict and f"{100 * average - 71:+.1f} points" in gen.stored(claim).figure
