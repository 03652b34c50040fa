"""The table of methods says of which papers only an abstract could be read, as the methods' docstrings do."""

import inspect
from pathlib import Path

from commonweight import methods

PAGE = Path(__file__).parents[2] / "docs" / "methods.md"
READ = {"coda", "lamda", "lora-mini", "mobiletl", "read", "styleinject", "two-stage", "uora", "vectorfit"}


def test_abstracts_are_marked():
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    told = {line.split("`")[1]: line.split(" | ")[2] for line in lines if line.startswith("| `")}
    assert {*told} == {*methods.available()}
    marked = {n for n, paper in told.items() if paper.endswith(", *abstract*")}
    said = {n for n, m in methods.available().items() if "abstract" in (inspect.getdoc(m.plan) or "").lower()}
    assert marked == said >= READ
    assert {n for n, paper in told.items() if paper.endswith(", *not its text*")} >= {"rpo", "share", "smora", "soda"}
