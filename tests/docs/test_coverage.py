"""The page of coverage: every id has an answer, and whatever answers is there."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest

from commonweight import exchange, lifelong, merge, methods, share

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def gen():
    sys.path.insert(0, str(DOCS))
    try:
        spec = importlib.util.spec_from_file_location("gen_coverage", DOCS / "gen_coverage.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(DOCS))
    return module


def test_ids_are_unique_and_all_there(gen):
    rows = gen.rows()
    assert len({r["id"] for r in rows}) == len(rows)
    assert [sum(r["core"] is core for r in rows) for core in (True, False)] == [179, 174]
    assert {r["family"] for r in rows} == set(gen.FAMILIES)


def test_every_line_has_one_kind_of_answer(gen):
    for r in gen.rows():
        given = [k for k in ("by", "missing", "study") if r.get(k)]
        assert len(given) == 1, r
        assert gen.answer(r) and "|" not in gen.answer(r) and "|" not in r["name"]
        assert not (r["core"] and "study" in r), r


def test_whatever_answers_is_there(gen):
    said = {
        f"{r['id']} {r['name']}: {problem}"
        for r in gen.rows()
        for one in r.get("by", ())
        if (problem := gen.wrong(one))
    }
    assert not said


def test_what_is_not_there_yet_is_in_no_registry(gen):
    names = {re.sub("[-_]", "", n) for one in (methods, merge, share, exchange, lifelong) for n in one.available()}
    late = {
        r["id"]: word
        for r in gen.rows()
        if "missing" in r and (word := re.sub("[-_ ]", "", re.sub(r"\(.*", "", r["name"])).lower()) in names
    }
    late.pop(193, None)  # Pruning All-Rounder shares its name with Parameter Allocation & Regularization
    late.pop(273, None)  # APT of prompts shares its name with Adaptive Pruning and Tuning
    assert not late, "docs/coverage.json says that these are not there yet"


@pytest.mark.parametrize(
    ("one", "problem"),
    [
        ({"kind": "method", "name": "warp"}, "method 'warp' is not registered"),
        ({"kind": "method", "name": "lora", "options": {"rnk": 3}}, "rnk"),
        ({"kind": "call", "name": "share.warp"}, "call 'share.warp'"),
        ({"kind": "library", "name": "warp"}, "has no address"),
        ({"kind": "library", "name": "peft", "at": "WarpConfig"}, "peft.WarpConfig"),
        ({"kind": "verb", "name": "lora"}, "kind 'verb' is none of"),
    ],
)
def test_what_is_not_there_is_told(gen, one, problem):
    assert problem in gen.wrong(one)


def test_the_page_is_current(gen):
    assert gen.table() in gen.PAGE.read_text(encoding="utf-8")
