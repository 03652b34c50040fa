"""Pictures, tables and intervals."""

from __future__ import annotations

import math
import re
from itertools import pairwise
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from commonweight.report import Column, Dot, Scatter, compact, facts, interval, page, spread, table
from tests.drawn import drawn


def test_wilsons_interval():
    # Wilson's formula solved the other way: both ends p satisfy |p - 0.8| = z sqrt(p (1 - p) / n).
    low, high = interval(80, 100)
    for p in (low, high):
        assert abs(p - 0.8) == pytest.approx(1.959964 * math.sqrt(p * (1 - p) / 100), rel=1e-6)
    assert interval(0, 10)[0] == 0 and interval(10, 10)[1] == pytest.approx(1)


@drawn(100)
@given(st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_an_interval_holds_its_share(pair):
    right, n = pair
    low, high = interval(right, n)
    assert 0 <= low <= right / n + 1e-12 and right / n - 1e-12 <= high <= 1


@pytest.mark.parametrize(("right", "n"), [(1, 0), (3, 2), (-1, 2)])
def test_an_interval_of_impossible_counts(right, n):
    with pytest.raises(ValueError, match=f"{right} of {n} rows; wanted"):
        interval(right, n)


def test_the_spread_of_a_mean():
    one = 1.959964 * math.sqrt(0.8 * 0.2 / 500)
    assert spread([(0.8, 500)]) == pytest.approx(one)
    assert spread([(0.8, 500)] * 4) == pytest.approx(one / 2)


@pytest.mark.parametrize(
    ("n", "text"), [(12, "12 B"), (1234, "1.23 kB"), (343_216, "343 kB"), (2_665_748, "2.67 MB"), (5e9, "5 GB")]
)
def test_bytes_in_few_figures(n, text):
    assert compact(n) == text


def scatter() -> Scatter:
    dots = [
        Dot(g, t, x, y, y - 0.03, y + 0.03, f"{t}-{g}", (f"{t} & {g}", "second line"))
        for g, x, y in (("small", 4e3, 0.7), ("large", 3e6, 0.8))
        for t in ("a", "b", "c")
    ]
    return Scatter("Title", "What it shows", "bytes", "share", ["small", "large"], dots)


def test_a_picture_is_xml_and_keeps_its_order():
    root = ElementTree.fromstring(scatter().svg())
    name = "{http://www.w3.org/2000/svg}"
    marks = [c for c in root.iter(f"{name}circle") if c.get("class") == "cw-big"]
    (x0, y0), (x1, y1) = [(float(c.get("cx")), float(c.get("cy"))) for c in marks]
    assert x0 < x1 and y0 > y1  # more bytes to the right, more accuracy upwards
    hover = [g for g in root.iter(f"{name}g") if "cw-hover" in (g.get("class") or "")]
    assert len(hover) == 6 and hover[0].find(f"{name}title").text == "a & small\nsecond line"
    _, _, w, h = map(float, root.get("viewBox").split())
    for e in root.iter():
        assert all(0 <= float(e.get(k)) <= w for k in ("cx", "x1", "x2", "x") if e.get(k))
        assert all(0 <= float(e.get(k)) <= h for k in ("cy", "y1", "y2", "y") if e.get(k))


def test_dots_of_one_group_stand_apart_and_labels_do_not_overlap():
    svg = scatter().svg()
    places = re.findall(r'<circle class="cw-dot" cx="([\d.]+)" cy="([\d.]+)" r="4.6"', svg)
    assert len(set(places)) == 6
    ends = [float(y) for y in re.findall(r'class="cw-soft" x="832.0" y="([\d.]+)"', svg)]
    assert len(ends) == 3 and all(b - a >= 14.9 for a, b in pairwise(ends))


def test_one_dot_alone_can_be_drawn():
    one = Scatter("T", "D", "x", "y", ["g"], [Dot("g", "t", 1000, 1.0, 1.0, 1.0)])
    ElementTree.fromstring(one.svg())


def test_a_table_groups_and_escapes():
    columns = (
        Column("name <", lambda r: r["name"], lambda r: r["name"], number=False),
        Column("n", lambda r: f"{r['n']:,}", lambda r: r["n"]),
    )
    rows = [{"name": f"t{i}", "task": "x" if i < 3 else "y", "n": 1000 * i} for i in range(6)]
    html = table(columns, rows, group="task", key="name", foot=[{"name": "sum", "n": 15000}])
    assert html.count("<button") == 2 and "name &lt;" in html
    assert re.findall(r'<tr class="first" data-key="(\w+)">', html) == ["t0", "t3"]
    assert (
        '<td class="n" data-sort="5000">5,000</td>' in html
        and '<tfoot><tr><td>sum</td><td class="n">15,000</td>' in html
    )
    assert "<button" not in table(columns, rows[:4])


def test_a_page_is_one_file():
    html = page("A < B", "lead & more", [("Heading", facts({"k": "<v>"}))])
    assert "<h1>A &lt; B</h1>" in html and "lead &amp; more" in html and "<dt>k</dt><dd>&lt;v&gt;</dd>" in html
    assert "http" not in html
