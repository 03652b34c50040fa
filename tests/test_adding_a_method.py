"""The page on adding a method is complete: its blocks run as they stand, and the laws hold for its example."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest

import commonweight as cw
from commonweight.core.serial import _CLASSES
from commonweight.methods.registry import METHODS, _plan
from tests.laws import test_laws

PAGE = Path(__file__).parents[1] / "docs" / "adding-a-method.md"
LAWS = {
    name: law
    for name, law in vars(test_laws).items()
    if name.startswith("test_") and "method" in inspect.signature(law).parameters
}


def blocks() -> dict[str, str]:
    """Title -> code of every Python block of the page, in order."""
    return dict(re.findall(r'^```python title="(.+?)"\n(.*?)^```$', PAGE.read_text("utf-8"), re.M | re.S))


@contextmanager
def example() -> Iterator[dict[str, ModuleType]]:
    """The page's files as modules in the places they name; afterwards nothing knows of them."""
    methods, classes = dict(METHODS.all), dict(_CLASSES)
    modules: dict[str, ModuleType] = {}
    try:
        for title, code in blocks().items():
            name = title.removeprefix("src/").removesuffix(".py").replace("/", ".")
            # The list of methods is the only file that already exists: its line runs beside it.
            name = name.replace("scaling.__init__", "scaling._listed")
            module = modules[name] = ModuleType(name)
            module.__package__ = name.rpartition(".")[0]
            sys.modules[name] = module
            exec(compile(code, f"{PAGE.name}: {title}", "exec"), vars(module))
        yield modules
    finally:
        for name in modules:
            del sys.modules[name]
        METHODS.all.clear()
        METHODS.all.update(methods)
        _CLASSES.clear()
        _CLASSES.update(classes)
        _plan.cache_clear()


@pytest.fixture
def modules() -> Iterator[dict[str, ModuleType]]:
    with example() as found:
        yield found


def test_every_python_block_of_the_page_is_run(modules):
    assert list(modules) == [
        "commonweight.methods.scaling.gate",
        "commonweight.methods.scaling._listed",
        "tests.methods.scaling.test_gate",
        "example",
    ]
    assert PAGE.read_text("utf-8").count("```python") == len(modules)
    assert modules["commonweight.methods.scaling._listed"].Gate is cw.methods.get("gate").config


def test_the_examples_own_tests_pass(modules):
    tests = [f for n, f in vars(modules["tests.methods.scaling.test_gate"]).items() if n.startswith("test_")]
    assert len(tests) == 3
    for test in tests:
        test()


@pytest.mark.parametrize("law", LAWS)
def test_the_laws_hold_for_the_example(law, modules, tmp_path):
    wanted = inspect.signature(LAWS[law]).parameters
    for kind in ("qwen", "gpt2", "t5", "mlp") if "kind" in wanted else (None,):
        given = {"method": "gate", "kind": kind, "tmp_path": tmp_path}
        LAWS[law](**{k: given[k] for k in wanted})


def test_nothing_of_the_example_stays_behind():
    before = dict(METHODS.all), set(_CLASSES), set(sys.modules)
    with example():
        assert "gate" in cw.methods.available() and "Gated" in _CLASSES
    assert (dict(METHODS.all), set(_CLASSES), set(sys.modules)) == before
    with pytest.raises(cw.CommonweightError, match="unknown method 'gate'"):
        cw.plan("gate", [cw.Site("q", 8, 8)])
