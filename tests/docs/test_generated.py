"""Pages that are generated: written, found current or not, and what is said of them then."""

import generated as shared
import pytest

from benchmarks import __main__ as tables

TOLD = "test_generated.py --write makes it anew"


@pytest.fixture
def generated(monkeypatch, tmp_path):
    monkeypatch.setattr(shared, "DOCS", tmp_path / "docs")
    (tmp_path / "docs").mkdir()
    return shared


def test_a_whole_page(generated, tmp_path, capsys):
    path = tmp_path / "docs" / "page.md"

    def pages():
        return {path: "new"}

    assert generated.main(pages, ["--check"], "use") == 1
    assert capsys.readouterr().err == f"docs/page.md is not current; python docs/{TOLD}\n"
    assert generated.main(pages, ["--write"], "use") == 0 and path.read_text() == "new"
    assert generated.main(pages, ["--check"], "use") == 0 and not capsys.readouterr().err
    path.write_text("new ")
    assert generated.main(pages, ["--check"], "use") == 1
    for arguments in ([], ["--both"], ["--check", "page.md"]):
        assert generated.main(pages, arguments, "use") == 2
        assert capsys.readouterr().err.endswith("use\n")


def test_parts_of_a_page(generated, tmp_path):
    path = tmp_path / "docs" / "page.md"
    path.write_text("a\n<!-- x:begin -->\nold\n<!-- x:end -->\nb\n<!-- y:begin -->\n<!-- y:end -->\nc\n")
    made = generated.parts(path, {"y": lambda: "2", "x": lambda: "1"})
    assert made == {path: "a\n<!-- x:begin -->\n1\n<!-- x:end -->\nb\n<!-- y:begin -->\n2\n<!-- y:end -->\nc\n"}
    with pytest.raises(SystemExit, match=r"page\.md: the markers <!-- z:begin --> and <!-- z:end --> are missing"):
        generated.parts(path, {"z": lambda: "3"})


def test_every_generator_is_asked(generated, tmp_path, monkeypatch, capsys):
    """All of them, one that is not current or none; the benchmarks' tables too."""
    monkeypatch.syspath_prepend(tmp_path)
    for name, text in (("gen_of_one", "1"), ("gen_of_two", "2")):
        (tmp_path / "docs" / f"{name}.py").touch()
        page = str(tmp_path / "docs" / name)
        (tmp_path / f"{name}.py").write_text(
            f"from pathlib import Path\ndef pages():\n    return {{Path({page!r}): {text!r}}}\n"
        )
        (tmp_path / "docs" / name).write_text("1")
    monkeypatch.setattr(tables, "check", lambda: 0)
    assert generated.every() == 1
    assert (
        capsys.readouterr().err == "docs/gen_of_two is not current; python docs/gen_of_two.py --write makes it anew\n"
    )
    (tmp_path / "docs" / "gen_of_two").write_text("2")
    assert generated.every() == 0
    monkeypatch.setattr(tables, "check", lambda: 1)
    assert generated.every() == 1
