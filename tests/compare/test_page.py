"""The page in a real browser: it plots, filters, sorts and shows a run; it asks the network for nothing."""

import json
from html.parser import HTMLParser

import pytest

import commonweight as cw
from commonweight.compare import points
from commonweight.compare.page import write
from tests.browser import chromium
from tests.compare.test_summary import SCORES, SIZES, outcome


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    o = outcome(SCORES, SIZES, failed={("probe", 0, "a")})
    for _, task, record in o.runs:
        if record["state"] == "done":
            record["curve"] = [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 0.5, "dev_accuracy": 0.75}]
            record["command"] = f"commonweight adapt {task} '</script>'"
    at = tmp_path_factory.mktemp("report")
    assert write(at, o, points(o)) == at / "index.html"
    return at


@pytest.fixture(scope="module")
def browser():
    with chromium() as opened:
        yield opened


@pytest.fixture
def page(browser, folder):
    """The page at 1280 x 900; at the end nothing was complained about and nothing was asked for."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    opened, said = context.new_page(), []
    opened.on("console", lambda m: said.append(m.text))
    opened.on("pageerror", lambda e: said.append(str(e)))
    opened.on("request", lambda r: said.append(r.url) if not r.url.startswith(("file:", "data:", "blob:")) else None)
    opened.goto((folder / "index.html").as_uri())
    opened.wait_for_selector("#plot .scatterlayer .trace")
    yield opened
    assert said == []
    context.close()


def names(page):
    return [b.inner_text() for b in page.query_selector_all("#table tbody td button")]


def test_it_plots_what_was_measured(page, tmp_path):
    assert names(page) == ["lora rank=0", "mos rank=1", "probe rank=2"]
    traces = page.evaluate(
        "document.getElementById('plot').data.map(t => [t.name ?? null, t.x, t.y, t.error_y?.array])"
    )
    by_name = {name: (x, y, bars) for name, x, y, bars in traces}
    assert by_name["lora"][0] == [4000]
    assert by_name["lora"][1] == [pytest.approx(75)] and by_name["lora"][2] == [pytest.approx(63.53, abs=0.01)]
    assert by_name[None][0] == [1000, 4000], "the front, from few bytes to many"
    page.screenshot(path=tmp_path / "page.png", full_page=True)
    assert (tmp_path / "page.png").stat().st_size > 20_000


def test_a_click_on_a_point_shows_its_runs(page):
    assert page.inner_text("#detail h3") == "lora rank=0"
    at = page.evaluate(
        """() => {
        const p = document.getElementById('plot'), t = p.data.find(t => t.name === 'mos');
        const box = p.getBoundingClientRect();
        const { xaxis, yaxis } = p._fullLayout;
        return [box.left + xaxis._offset + xaxis.d2p(t.x[0]), box.top + yaxis._offset + yaxis.d2p(t.y[0])];
        }"""
    )
    page.mouse.move(*at)
    page.mouse.click(*at)
    assert page.inner_text("#detail h3") == "mos rank=1"
    assert len(page.query_selector_all("#curve .scatterlayer .trace")) == 8  # 4 runs: loss and dev
    items = [li.inner_text() for li in page.query_selector_all("#detail li span")]
    assert items == ["a, seed 0: 70.00", "b, seed 0: 50.00", "a, seed 1: 70.00", "b, seed 1: 70.00"]
    assert page.inner_text("#detail li code").startswith("commonweight adapt a '</script>'")
    page.select_option("#task", "b")
    assert len(page.query_selector_all("#detail li")) == 2


def test_the_command_is_copied(page):
    page.click("#detail li button")
    page.wait_for_selector("#detail li button:has-text('Copied')")


def test_filters(page):
    page.fill("#filter", "MOS")
    assert names(page) == ["mos rank=1"] and page.inner_text("#count") == "1 of 3 configs"
    assert page.evaluate("document.getElementById('plot').data.map(t => t.name)") == ["mos"]
    page.fill("#filter", "nothing has this name")
    assert names(page) == []
    page.fill("#filter", "")
    page.check("#front")
    assert names(page) == ["lora rank=0", "mos rank=1"]
    page.uncheck("#front")
    page.click("#chips button:has-text('lora')")
    assert names(page) == ["mos rank=1", "probe rank=2"]
    assert page.get_attribute("#chips button:has-text('lora')", "aria-pressed") == "false"


def test_sorting(page):
    page.click("#table th:nth-child(2) button")
    assert names(page) == ["lora rank=0", "probe rank=2", "mos rank=1"]
    assert page.get_attribute("#table th:nth-child(2)", "aria-sort") == "descending"
    page.click("#table th:nth-child(2) button")
    assert names(page) == ["mos rank=1", "probe rank=2", "lora rank=0"]
    page.click("#table th:nth-child(5) button")
    assert names(page)[-1] == "probe rank=2", "what has no number stands last"


def test_the_keyboard_is_enough(page):
    page.focus("#table tbody tr:nth-child(2) button")
    page.keyboard.press("Enter")
    assert page.inner_text("#detail h3") == "mos rank=1"


def test_no_width_and_no_scheme_breaks_it(page):
    for scheme, wanted in (("light", "#1d2a2c"), ("dark", "#e8efec")):
        page.emulate_media(color_scheme=scheme)
        for width in (400, 1280):
            page.set_viewport_size({"width": width, "height": 800})
            page.wait_for_function(f"document.documentElement.scrollWidth <= {width}", timeout=20_000)
            assert page.evaluate("document.getElementById('plot').layout.font.color") == wanted


class Sources(HTMLParser):
    """What a page would load."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        self.found += [v for k, v in attrs if k in ("src", "srcset") or (k == "href" and tag == "link")]


def test_the_files(folder):
    assert sorted(p.name for p in folder.iterdir()) == ["index.html", "results.json", "table.md"]
    text = (folder / "index.html").read_text("utf-8")
    reader = Sources()
    reader.feed(text)
    assert reader.found == []
    told = json.loads((folder / "results.json").read_text("utf-8"))
    assert [p["method"] for p in told["points"]] == ["lora", "mos", "probe"] and told["points"][2]["failed"]


def test_a_folder_that_is_a_file(folder):
    o = outcome(SCORES, SIZES)
    with pytest.raises(cw.CommonweightError, match="is a file; wanted a folder"):
        write(folder / "table.md", o, points(o))


def test_the_curves_are_explained(page):
    told = page.inner_text("#detail .legend").splitlines()
    assert told == [
        "a", "b", "loss of the training rows, left axis", "accuracy, % on the dev rows, right axis",
        "one line per seed",
    ]  # fmt: skip
    axes = [t.text_content() for t in page.query_selector_all("#curve .infolayer text[class$=title]")]
    assert [a for a in axes if a] == ["training step", "loss (lines)", "dev accuracy, % (dots)"]


def test_no_column_is_cut(page):
    page.set_viewport_size({"width": 1280, "height": 900})
    wide = page.query_selector(".wide")
    assert wide.evaluate("e => e.scrollWidth - e.clientWidth") <= 1
