"""The page of coverage: every id has an answer, and whatever answers is there."""

import re
from pathlib import Path

import gen_coverage as gen
import pytest

from commonweight import exchange, lifelong, merge, methods, share

DOCS = Path(__file__).parents[2] / "docs"


def test_ids_are_unique_and_all_there():
    rows = gen.rows()
    assert len({r["id"] for r in rows}) == len(rows)
    assert [sum(r["core"] is core for r in rows) for core in (True, False)] == [179, 174]
    assert {r["family"] for r in rows} == set(gen.FAMILIES)


def test_every_line_has_one_kind_of_answer():
    for r in gen.rows():
        given = [k for k in ("by", "nothing", "study") if r.get(k)]
        assert len(given) == 1, r
        assert gen.answer(r) and "|" not in gen.answer(r) and "|" not in r["name"]
        assert not (r["core"] and "study" in r), r


def test_whatever_answers_is_there():
    said = {
        f"{r['id']} {r['name']}: {problem}"
        for r in gen.rows()
        for one in r.get("by", ())
        if (problem := gen.wrong(one))
    }
    assert not said


def test_what_others_answer_is_in_no_registry():
    names = {re.sub("[-_]", "", n) for one in (methods, merge, share, exchange, lifelong) for n in one.available()}
    late = {
        r["id"]: word
        for r in gen.rows()
        if gen.sort(r) not in ("own", "study")
        and (word := re.sub("[-_ ]", "", re.sub(r"\(.*", "", r["name"])).lower()) in names
    }
    late.pop(193, None)  # Pruning All-Rounder shares its name with Parameter Allocation & Regularization
    assert not late, "docs/coverage.json says that these are not here"


def test_libraries_and_code_say_what_was_seen():
    for r in gen.rows():
        for one in r.get("by", ()):
            assert one["kind"] != "library" or one.get("release") or one.get("commit") or r.get("note"), r
            assert not ({"release"} & set(one)) or one["kind"] == "library", r
        assert not r.get("part") or r.get("note"), r  # what is left out is told


def test_the_first_that_answers_is_counted():
    by = [{"kind": k, "name": "a/b"} for k in ("reimplementation", "official", "library", "share")]
    assert [gen.sort({"by": by[:n]}) for n in (1, 2, 3, 4)] == ["reimplementation", "official", "library", "own"]
    assert [gen.sort(r) for r in ({"nothing": "looked"}, {"study": "a survey"})] == ["nothing", "study"]
    rows = [{"by": by}, {"by": by[:3], "part": True}, {"by": by[:3]}, {"nothing": "looked"}]
    assert gen.counted(rows) == ["4", "1", "2 (1)", "0", "0", "1", "0"]


@pytest.mark.parametrize(
    ("one", "problem"),
    [
        ({"kind": "method", "name": "warp"}, "method 'warp' is not registered"),
        ({"kind": "method", "name": "lora", "options": {"rnk": 3}}, "rnk"),
        ({"kind": "call", "name": "share.warp"}, "call 'share.warp'"),
        ({"kind": "library", "name": "warp"}, "has no address"),
        ({"kind": "library", "name": "peft", "at": "WarpConfig"}, "peft.WarpConfig"),
        ({"kind": "verb", "name": "lora"}, "kind 'verb' is none of"),
        ({"kind": "official", "name": "warp"}, "no owner and repository"),
        ({"kind": "official", "name": "a/warp"}, "give the file that was seen"),
        ({"kind": "official", "name": "a/warp", "seen": "dreamt"}, "seen 'dreamt' is none of"),
    ],
)
def test_what_is_not_there_is_told(one, problem):
    assert problem in gen.wrong(one)


def test_the_page_is_current():
    assert gen.table() in gen.PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize("page", ["README.md", "docs/index.md"])
def test_pages_count_the_methods(page):
    text = (DOCS.parent / page).read_text(encoding="utf-8")
    told = re.findall(r"(\d+) (?:published )?methods", text)
    assert told and {int(n) for n in told} == {len(methods.available())}
