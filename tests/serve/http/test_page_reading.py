"""The page at `/` before an encoder, in a real browser: texts are read, by whom and for what is chosen."""

from __future__ import annotations

import pytest

from commonweight.serve import Encoder
from commonweight.serve.http import Settings, make
from tests.browser import chromium

from .. import encoders
from . import shop
from .live import listening
from .test_keys import made


@pytest.fixture(scope="module")
def guard(tmp_path_factory):
    at = tmp_path_factory.mktemp("keys") / "keys.json"
    return at, made(at, "all")


@pytest.fixture(scope="module")
def encoder():
    with Encoder(encoders.host(encoders.bert()), tokenizer=shop.tokenizer()) as found:
        yield found


@pytest.fixture(scope="module")
def page(encoder, guard):
    with chromium() as browser, listening(make(encoder, Settings(name="org/tiny", keys=guard[0]))) as (address, _):
        opened, said = browser.new_page(viewport={"width": 1000, "height": 800}), []
        opened.on("console", lambda m: said.append(m.text) if "Failed to load resource" not in m.text else None)
        opened.on("pageerror", lambda e: said.append(str(e)))
        opened.on("request", lambda r: said.append(r.url) if not r.url.startswith((address, "data:")) else None)
        opened.goto(address)
        opened.wait_for_selector("#ask-key[open]")
        opened.fill("#key", guard[1])
        opened.keyboard.press("Enter")
        opened.wait_for_selector("#readers option", state="attached")
        yield opened
        assert said == []


def read(page, what, reader, texts, done="#said:has-text('were read')"):
    page.select_option("#what", what)
    page.fill("#reader", reader)
    page.fill("#texts", "\n".join(texts))
    page.press("#texts", "Control+Enter")
    page.wait_for_selector(done, state="attached")
    return [
        [c.inner_text() for c in r.query_selector_all("th, td")] for r in page.query_selector_all("#found tbody tr")
    ]


def test_how_alike_texts_are(page, encoder, tmp_path):
    texts = ["w1 w2", "w3 w4", "w1 w2"]
    rows = read(page, "near", "three", texts)
    found = [e.vector for e in encoder.embed(texts, "three")]
    for i, row in enumerate(rows):
        assert row[0] == f"{i + 1}. {texts[i]}"
        for text, b in zip(row[1:], found):
            assert float(text) == pytest.approx(sum(x * y for x, y in zip(found[i], b)), abs=1e-3)
    assert rows[0][3] == "1.000"
    page.screenshot(path=tmp_path / "page.png", full_page=True)
    assert (tmp_path / "page.png").stat().st_size > 10_000


def test_classes(page, encoder):
    rows = read(page, "classes", "three", ["w5", "w6 w7"])
    want = encoder.classify(["w5", "w6 w7"], "three")
    assert [r[1] for r in rows] == [c.label for c in want]
    assert f"{100 * want[1].shares[2]:.1f} %" in rows[1][2] and len(page.query_selector_all("meter")) == 6
    read(page, "classes", "base", ["w5"], "#problem:has-text('has no classes')")
    assert not page.query_selector_all("#found tr")


def test_ranks(page, encoder):
    assert not page.is_visible("#query")
    page.select_option("#what", "rank")
    page.fill("#query", "w9")
    texts = ["w1", "w9", "w3"]
    rows = read(page, "rank", "plain", texts)
    want = encoder.rerank("w9", texts, "plain")
    assert [r[1] for r in rows] == [texts[r.index] for r in want] and rows[0][1] == "w9"
    assert [r[2] for r in rows] == [f"{r.score:.4f}" for r in want]


def test_what_goes_wrong_is_told(page):
    read(page, "near", "nobody", ["w1"], "#problem:has-text('does not exist')")
    read(page, "near", "base", ["w1"] * 25, "#problem:has-text('the page takes 24')")
    rows = read(page, "near", "base", ["<b>w1</b>", " ", "w2"])
    assert rows[0][0] == "1. <b>w1</b>" and len(rows) == 2
    assert page.evaluate("[localStorage.length, sessionStorage.length, document.cookie]") == [0, 0, ""]
    for width in (360, 1000):
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
