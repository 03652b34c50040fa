"""How the files of the library hang together: no circles, none too long, nothing private used from outside."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import gen_house as drawing
import grimp

import commonweight

SRC = Path(commonweight.__file__).parent
LONGEST = 500  # lines


def circle(imports: dict[str, set[str]]) -> list[str]:
    """Files that import each other, in a ring; empty where there are none."""
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as e:
        return list(e.args[1])
    return []


def test_no_file_imports_itself_by_way_of_others():
    """Packages' own files and imports inside functions count; what only a type checker reads does not."""
    graph = grimp.build_graph("commonweight", exclude_type_checking_imports=True, cache_dir=None)
    imports = {m: graph.find_modules_directly_imported_by(m) for m in graph.modules}
    assert len(imports) > 200
    assert circle(imports) == []


def test_a_circle_is_seen():
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) in (["b", "c", "b"], ["c", "b", "c"])


def test_files_are_short():
    lengths = {p: len(p.read_text(encoding="utf-8").splitlines()) for p in SRC.rglob("*.py")}
    assert {str(p.relative_to(SRC)): n for p, n in lengths.items() if n > LONGEST} == {}


def private(tree: ast.AST) -> Iterator[str]:
    """Names with one underscore that are taken from other files of the library, by `from` or by the module's name."""
    modules: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            modules |= {a.asname or a.name for a in node.names}
            yield from (a.name for a in node.names if hidden(a.name))
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if hidden(node.attr) and node.value.id in modules and node.value.id.islower():
                yield f"{node.value.id}.{node.attr}"


def hidden(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def test_private_names_stay_in_their_file():
    found = {p: list(private(ast.parse(p.read_text(encoding="utf-8")))) for p in SRC.rglob("*.py")}
    assert {str(p.relative_to(SRC)): names for p, names in found.items() if names} == {}


def test_private_names_are_seen():
    seen = private(ast.parse("from .a import _b, __version__, c\nfrom . import d\nd._e\nd.f\nself._g\n"))
    assert list(seen) == ["_b", "d._e"]


# -- the picture ------------------------------------------------------------------------------------------------------


def test_what_follows_from_other_imports_is_left_out():
    imports = {"a": {"b", "c", "d"}, "b": {"c"}, "c": {"d"}, "d": set()}
    assert drawing.reduced(imports) == {"a": {"b"}, "b": {"c"}, "c": {"d"}, "d": set()}


def test_arrows_that_would_meet_have_lanes_of_their_own():
    imports = {"a": {"b", "d"}, "b": {"e"}, "c": {"e"}, "d": set(), "e": set()}
    house = drawing.House("x", [["a"], ["b", "c"], ["d"], ["e"]], imports, dict.fromkeys(imports, "It is so"))
    assert drawing.lanes(house) == {"b": 0, "d": 1, "e": 2}
    lines, end = drawing.panel(house, 0)
    assert sum("way" in line for line in lines) == 4 and end > 5 * drawing.ROW


def test_the_picture_is_drawn_from_the_imports():
    """Every arrow goes down, and what the command line imports is there."""
    for house in drawing.houses():
        at = {name: i for i, name in enumerate(house.rows)}
        assert all(at[a] < at[b] for a, found in house.imports.items() for b in found)
    assert "merge" in drawing.houses()[0].imports["cli"]


def test_no_name_that_is_imported_on_first_use_is_a_file_beside_it():
    """Importing the file would put the module in the name's place."""
    for init in SRC.rglob("__init__.py"):
        package = ".".join(init.parent.relative_to(SRC.parent).parts)
        homes = getattr(importlib.import_module(package), "_HOMES", {})
        beside = {p.stem for p in init.parent.glob("*.py")} | {p.name for p in init.parent.iterdir() if p.is_dir()}
        assert not beside & homes.keys(), package
