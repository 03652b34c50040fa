"""What the methods are called and which options they have, read off their files: a wrong name is told within a second,
before torch is loaded, which alone takes two."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal

from ..core import config, option

HERE = Path(__file__).parents[1]
IN_ANNOTATIONS = (Literal,)  # the twins' types are read in this module


@cache
def methods() -> dict[str, type]:
    """Name -> a twin of its config: the same fields, types, defaults and ranges; what is wrong between fields, the
    method's own config tells later. Empty where there are no sources."""
    return _twins(HERE / "methods")


@cache
def over() -> dict[str, type]:
    """The same of methods over tenants."""
    return _twins(HERE / "methods" / "over", "over")


@cache
def sharing() -> dict[str, type]:
    """The same of sharing methods."""
    return _twins(HERE / "share" / "methods")


def _twins(folder: Path, by: str = "method") -> dict[str, type]:
    out: dict[str, type] = {}
    for path in _sources(folder):
        tree = _parsed(path)
        classes = {n.name: n for n in tree.body if isinstance(n, ast.ClassDef)}
        for name, call in _registered(tree, by):
            made = call.args[1] if len(call.args) > 1 else None
            if isinstance(made, ast.Name) and made.id in classes:
                out[name] = _twin(classes[made.id], _constants(tree, path))
    return out


@cache
def exchanges() -> dict[str, type]:
    """The same of exchange methods."""
    return _twins(HERE / "exchange" / "methods")


@cache
def lifelong() -> dict[str, type]:
    """The same of lifelong methods."""
    return _twins(HERE / "lifelong" / "methods")


@cache
def merges() -> list[str]:
    """The names of merge methods. Empty where there are no sources."""
    return [name for tree in _trees(HERE / "merge" / "methods") for name, _ in _registered(tree)]


def _sources(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.py"))


def _parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _trees(folder: Path) -> Iterator[ast.Module]:
    return map(_parsed, _sources(folder))


def _registered(tree: ast.Module, by: str = "method") -> Iterator[tuple[str, ast.Call]]:
    """What stands under @method("name", ...), or what else a list is filled by."""
    calls = [d for n in tree.body if isinstance(n, ast.FunctionDef) for d in n.decorator_list]
    for call in calls:
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == by:
            if call.args and isinstance(call.args[0], ast.Constant):
                yield str(call.args[0].value), call


def _constants(tree: ast.Module, path: Path) -> dict[str, ast.expr]:
    """A module's own, and those that it takes from a file of this package, by their names in capitals."""
    out = {t.id: n.value for n in tree.body if isinstance(n, ast.Assign) for t in n.targets if isinstance(t, ast.Name)}
    for n in tree.body:
        wanted = [a.name for a in n.names if a.name.isupper()] if isinstance(n, ast.ImportFrom) and n.level else []
        if wanted and isinstance(n, ast.ImportFrom) and n.module:
            home = path.parents[n.level - 1].joinpath(*n.module.split(".")).with_suffix(".py")
            if home.is_file():
                theirs = _constants(_parsed(home), home)
                out |= {w: theirs[w] for w in wanted if w in theirs}
    return out


class _Filled(ast.NodeTransformer):
    """Names of a module's constants as what they stand for."""

    def __init__(self, constants: Mapping[str, ast.expr]):
        self.constants = constants

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return self.constants.get(node.id, node)


def _twin(node: ast.ClassDef, constants: Mapping[str, ast.expr]) -> type:
    fill = _Filled(constants).visit
    body: dict[str, Any] = {"__module__": __name__, "__annotations__": {}}
    for field in node.body:
        if isinstance(field, ast.Assign) and ast.unparse(field.targets[0]) == "GONE":
            body["GONE"] = ast.literal_eval(fill(field.value))
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            body["__annotations__"][field.target.id] = ast.unparse(fill(field.annotation))
            if isinstance(field.value, ast.Call):
                given = [ast.literal_eval(fill(a)) for a in field.value.args]
                more = {k.arg: ast.literal_eval(fill(k.value)) for k in field.value.keywords if k.arg}
                body[field.target.id] = option(*given, **more)
    make: Callable[[type], type] = config
    return make(type(node.name, (), body))
