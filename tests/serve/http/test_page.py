"""The page at `/` in a real browser: tenants are chosen, one prompt is asked, each answer is its tenant's own."""

from __future__ import annotations

import pytest

from commonweight.serve import Request
from tests.browser import chromium

from ..served import add, alone
from . import shop
from .live import live
from .test_keys import made

WORDS = "w1 w2"


@pytest.fixture(scope="module")
def host():
    found = shop.host()
    add(found, "plug", "bottleneck")
    return found


@pytest.fixture(scope="module")
def browser():
    with chromium() as opened:
        yield opened


@pytest.fixture(scope="module")
def guard(tmp_path_factory):
    at = tmp_path_factory.mktemp("keys") / "keys.json"
    return at, made(at, "all")


@pytest.fixture(scope="module")
def address(host, guard, browser):
    with live(host, keys=guard[0]) as (found, _, _):
        yield found


@pytest.fixture
def page(browser, address):
    """At the end nothing was complained about but refused calls, and nobody but the server was asked."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    opened, said = context.new_page(), []
    opened.on("console", lambda m: said.append(m.text) if "Failed to load resource" not in m.text else None)
    opened.on("pageerror", lambda e: said.append(str(e)))
    opened.on("request", lambda r: said.append(r.url) if not r.url.startswith((address, "data:")) else None)
    opened.goto(address)
    yield opened
    assert said == []
    context.close()


def enter(page, secret):
    page.wait_for_selector("#ask-key[open]")
    page.fill("#key", secret)
    page.keyboard.press("Enter")


@pytest.fixture
def within(page, guard):
    """The page with a key, and its first tenants chosen."""
    enter(page, guard[1])
    page.wait_for_selector("#tenants input:checked")
    return page


def ask(page, most=6, prompt=WORDS):
    page.fill("#prompt", prompt)
    page.fill("#most", str(most))
    page.press("#prompt", "Control+Enter")
    page.wait_for_selector("#said:has-text('ended')", state="attached")


def texts(page):
    found = page.query_selector_all(".answer")
    return {a.query_selector("h2").inner_text(): a.query_selector(".text").text_content() for a in found}


def words(host, tenant, most=6):
    tokens = alone(host, Request([4, 8, 9, 5], tenant, max_new_tokens=most))
    end = tokens.index(2) if 2 in tokens else most
    return shop.tokenizer().decode(tokens[:end], skip_special_tokens=True)


def boxes(page):
    return {b.get_attribute("data-name"): b.is_checked() for b in page.query_selector_all("#tenants input")}


def test_tenants_side_by_side(within, host, tmp_path):
    page = within
    assert page.inner_text("#model") == "org/tiny" and page.inner_text("#many") == "3 tenants"
    assert boxes(page) == {"base": True, "a": True, "b": True, "plug": False}
    ask(page, 40)
    got = texts(page)
    assert list(got) == ["base", "a", "b"]
    for name, text in got.items():
        assert text == words(host, None if name == "base" else name, 40), name
    numbers = [d.inner_text() for d in page.query_selector_all(".answer:nth-child(2) dd")]
    assert numbers[2].endswith("ms") and float(numbers[1]) > 0
    facts = page.inner_text(".answer:nth-child(2) .note")
    assert facts == f"lora, {host['a'].nbytes / 1000:.3g} kB"
    bars = page.get_attribute("#size svg", "aria-label")
    assert bars.startswith("Bytes: base 0 B, a ") and len(page.query_selector_all("#size rect")) == 3
    assert len(page.query_selector_all("#speed polyline")) == 3
    box = page.query_selector("#speed svg").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    assert page.is_visible("#tip") and " s" in page.inner_text("#tip")
    page.screenshot(path=tmp_path / "page.png", full_page=True)
    assert (tmp_path / "page.png").stat().st_size > 20_000


def test_choosing(within, host):
    page = within
    page.click("#tenants label:has-text('base')")
    page.fill("#filter", "PL")
    assert list(boxes(page)) == ["plug"]
    page.fill("#filter", "nobody")
    assert page.inner_text("#count") == "None of this name."
    page.fill("#filter", "a+0.5*b")
    assert page.inner_text("#count") == "Enter adds this sum."
    page.press("#filter", "Enter")
    assert boxes(page) == {"a+0.5*b": True, "base": False, "a": True, "b": True, "plug": False}
    ask(page)
    got = texts(page)
    assert list(got) == ["a", "b", "a+0.5*b"] and got["a"] == words(host, "a")
    page.wait_for_selector(".answer:nth-child(3) .note:has-text('a lora')")
    for name in ("a", "b", "a+0.5*b"):
        page.click(f"#tenants label:has(input[data-name='{name}'])")
    assert page.is_disabled("#ask")


def test_an_error_stands_in_its_own_answer(within, host):
    page = within
    page.fill("#filter", "a+plug")
    page.press("#filter", "Enter")
    ask(page)
    got = texts(page)
    assert "(bottleneck) cannot be added" in got["a+plug"] and got["a"] == words(host, "a")
    assert page.inner_text("#said") == "3 answers have ended, 1 failed."
    assert len(page.query_selector_all(".answer .text.bad")) == 1


def test_an_answer_can_be_stopped(within):
    page = within
    page.fill("#most", "200")
    page.fill("#prompt", WORDS)
    page.click("#ask")
    page.keyboard.press("Escape")
    page.wait_for_selector("#stop:disabled")
    assert not page.query_selector_all(".busy")


def test_keys(page, guard):
    enter(page, "cw-wrong")
    page.wait_for_selector("#problem:has-text('not known here')")
    enter(page, guard[1])
    page.wait_for_selector("#tenants input:checked")
    assert page.inner_text("#problem") == ""
    stored = page.evaluate("[localStorage.length, sessionStorage.length, document.cookie]")
    assert stored == [0, 0, ""]


def test_the_keyboard_is_enough(within, host):
    page = within
    page.focus("#filter")
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    assert boxes(page)["base"] is False
    assert page.evaluate("document.activeElement.dataset.name") == "base", "the focus stays where it was"
    page.focus("#prompt")
    page.keyboard.press("Control+a")
    page.keyboard.type(WORDS)
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("#said:has-text('ended')", state="attached")
    assert list(texts(page)) == ["a", "b"]


def test_no_width_and_no_scheme_breaks_it(within):
    page = within
    ask(page)
    for scheme, ink in (("light", "rgb(29, 42, 44)"), ("dark", "rgb(232, 239, 236)")):
        page.emulate_media(color_scheme=scheme)
        for width in (360, 700, 1280):
            page.set_viewport_size({"width": width, "height": 800})
            assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate("getComputedStyle(document.body).color") == ink


def test_what_an_answer_says_is_never_run(address):
    import urllib.request

    with urllib.request.urlopen(address) as got:
        rules, text = got.headers["content-security-policy"], got.read().decode()
    assert "default-src 'none'" in rules and "connect-src 'self'" in rules
    assert "innerHTML" not in text and "http://" not in text.replace("http://www.w3.org/2000/svg", "")
