"""Every example of the README and of the documentation runs as it stands, on tiny models under the real ones' names."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from commonweight.adapt import Recipe
from commonweight.merge import registry
from commonweight.share import registry as sharing
from tests.docs import examples, world

APART = {"LOG.md", "adding-a-method.md"}  # the latter has a test of its own
PAGES = ["README.md", *sorted(f"docs/{p.name}" for p in (examples.ROOT / "docs").glob("*.md") if p.name not in APART)]
RUN = {"python", "console"}
WITH = [p for p in PAGES if any(b.kind in RUN for b in examples.blocks(examples.ROOT / p))]


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    world.build(folder)
    return folder


@pytest.fixture
def here(made, tmp_path, monkeypatch):
    """A folder of one's own with everything from the world in it."""
    for path in made.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))  # a page may add a method
    monkeypatch.setattr(sharing.METHODS, "all", dict(sharing.METHODS.all))
    monkeypatch.setattr(Recipe, "steps", lambda self, rows: 2)  # what is trained does not matter here
    monkeypatch.setenv("COLUMNS", "120")
    return tmp_path


@pytest.mark.parametrize("page", WITH)
def test_the_examples_run(page, here, capsys):
    path = examples.ROOT / page
    assert examples.run(path)
    told = capsys.readouterr().out
    for line in re.findall(r"print\(\w+\)  # (Tenant.*)", path.read_text(encoding="utf-8")):
        assert line in told


def test_a_failing_command_is_noticed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = Path("page.md")
    page.write_text("```console\n$ commonweight adapt nowhere nothing.tsv --out x.safetensors\n```\n")
    with pytest.raises(AssertionError, match=r"page.md, line 2: commonweight adapt nowhere .* ended with 2"):
        examples.run(page)


def test_blocks_and_commands_are_read_as_people_do():
    text = "$ cd x && commonweight methods mos  # why\nout\n$ commonweight plan \\\n    a --json\n$ make test\n"
    assert list(examples.commands(text)) == [["methods", "mos"], ["plan", "a", "--json"]]
    assert os.path.exists(examples.ROOT / "README.md") and len(WITH) > 5
