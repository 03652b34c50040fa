"""Options: their types, inside tuples too, from Python and from a command line."""

import dataclasses
import inspect

import pytest

import commonweight as cw
from commonweight.core import build, config, option, parse
from commonweight.methods import get


@config
class Small:
    layers: tuple[int, ...] = option((), "numbers")
    ranks: tuple[tuple[str, int], ...] = option((), "pairs")
    alphas: tuple[tuple[str, float], ...] = option((), "pairs")
    rate: float | None = option(None, "a number")
    names: tuple[str, ...] = option((), "names")


def test_tuples_from_a_command_line():
    given = ["layers=[0, 4]", 'ranks=[["*.q", 4]]', 'alphas=[["*.q", 2]]', "rate=1e-3"]
    made = build(Small, parse(Small, given))
    assert made == Small(layers=(0, 4), ranks=(("*.q", 4),), alphas=(("*.q", 2.0),), rate=1e-3)
    assert made == Small(layers=[0, 4], ranks=[["*.q", 4]], alphas=[["*.q", 2]], rate=1e-3)  # type: ignore[arg-type]
    assert parse(Small, ["layers=[]"]) == {"layers": ()}


@pytest.mark.parametrize("text", ["layers=0,4", "layers=4", "layers={}", "layers=[0", "layers="])
def test_a_tuple_is_written_as_json(text):
    with pytest.raises(
        cw.CommonweightError, match=r"Small: layers=.*: wanted tuple\[int, \.\.\.\], written as JSON: \[4\] or"
    ):
        parse(Small, [text])
    with pytest.raises(cw.CommonweightError, match=r'names=q: .* written as JSON: \["\*.q"\]'):
        parse(Small, ["names=q"])


@pytest.mark.parametrize(
    "options",
    [
        {"layers": (0, "4")},
        {"layers": (0.0,)},
        {"layers": (True,)},
        {"ranks": ("*.q", 4)},
        {"ranks": (("*.q",),)},
        {"ranks": ((4, "*.q"),)},
        {"alphas": (("*.q", float("nan")),)},
        {"rate": float("nan")},
        {"rate": float("inf")},
        {"rate": 10**400},
        {"rate": True},
    ],
)
def test_elements_and_numbers_are_checked(options):
    (name,) = options
    with pytest.raises(cw.CommonweightError, match=f"Small: {name} is .*; wanted"):
        Small(**options)


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_ranks_and_alphas_are_positive(method):
    kind = get(method).config
    for name, pairs in (("ranks", (("*.q", 0),)), ("alphas", (("a", 1.0), ("*.q", -2.0)))):
        with pytest.raises(cw.CommonweightError, match=rf"{name} gives '\*\.q' the value .*; it must be > 0"):
            kind(**{name: pairs})


def test_no_option_of_a_method_is_an_argument_of_add():
    """Host.add(name, method, **options) could not be told it."""
    own = set(inspect.signature(cw.Host.add).parameters)
    for method in cw.methods.available():
        options = {f.name for f in dataclasses.fields(cw.methods.get(method).config)}
        assert not options & own, f"{method}: {options & own}"
