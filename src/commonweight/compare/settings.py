"""What a comparison is: data, checked as soon as it is made."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from ..adapt import Recipe
from ..adapt.names import DTYPES
from ..adapt.tasks import get as get_task
from ..core import CommonweightError, build, parse, unknown
from ..formats.codecs import get as get_codec
from ..methods import available, get
from .budget import parse_budget
from .data import Data

DEFAULT = "default"


@dataclass(frozen=True)
class Comparison:
    """methods at equal bytes: every method, at every budget, on every task, with every seed.

    budgets: as text, "4KB"; none: every method at its defaults; "default" beside others: those at their defaults that
    have no config within any of them. options: per method, options that are not searched.
    trials: runs that each (method, budget, task) may spend on its learning rate; 0: the method's own rate.
    tune_on: the one task on which they are spent, its rate used on all; None: each task has its own.
    codec: by which the pools are stored and then measured. against: the method that others are paired with; None:
    lora where it is among them, else the first. recipe: fields of `adapt.Recipe`.
    Raises: CommonweightError for anything that can be known to be wrong without the model.
    """

    model: str
    data: tuple[Data, ...]
    methods: tuple[str, ...]
    budgets: tuple[str, ...] = ()
    seeds: int = 3
    trials: int = 0
    task: str = "classify"
    options: dict[str, dict[str, Any]] = field(default_factory=dict)
    recipe: dict[str, Any] = field(default_factory=dict)
    dtype: str = "auto"
    sites: str | None = None
    text_column: str | None = None
    label_column: str | None = None
    against: str | None = None
    codec: str | None = None
    tune_on: str | None = None

    def __post_init__(self) -> None:
        get_task(self.task)
        for name in (*self.methods, *self.options, *((self.against,) if self.against else ())):
            get(name)
        for what, values in (("method", self.methods), ("task", [d.name for d in self.data])):
            if not values:
                raise CommonweightError(f"no {what} to compare; give at least one")
            _once(what, values)
        if self.against is not None and self.against not in self.methods:
            raise unknown("method to pair with", self.against, self.methods)
        for number, least, flag in ((self.seeds, 1, "--seeds"), (self.trials, 0, "--trials")):
            if number < least:
                raise CommonweightError(f"{flag} {number}: wanted at least {least}")
        if self.tune_on is not None and not self.trials:
            raise CommonweightError(f"--tune-on {self.tune_on}: nothing is tuned; give --trials as well")
        if self.tune_on is not None and self.tune_on not in (names := [d.name for d in self.data]):
            raise unknown("task to tune on", self.tune_on, names)
        if self.dtype not in DTYPES:
            raise unknown("dtype", self.dtype, DTYPES)
        build(Recipe, self.recipe)
        if self.codec is not None:
            get_codec(self.codec)
        _once("budget", [size or text for text, size in self.limits])

    @property
    def limits(self) -> tuple[tuple[str, int | None], ...]:
        """The budgets and their bytes; None of the word that stands for a method's defaults."""
        return tuple((b, None if b == DEFAULT else parse_budget(b)) for b in self.budgets or (DEFAULT,))

    @property
    def reference(self) -> str:
        return self.against or ("lora" if "lora" in self.methods else self.methods[0])


def _once(what: str, values: Iterable[Any]) -> None:
    seen = set()
    for v in values:
        if v in seen:
            raise CommonweightError(f"the {what} {v} is given twice")
        seen.add(v)


def parse_methods(text: str) -> tuple[str, ...]:
    """Names from "lora,mos,vb-lora"; "all" is every method."""
    names = tuple(n.strip() for n in text.split(",") if n.strip())
    return tuple(available()) if names == ("all",) else names


def parse_options(pairs: Iterable[str]) -> dict[str, dict[str, Any]]:
    """{"mos": {"rank": 16}} from ["mos.rank=16"]."""
    out: dict[str, dict[str, Any]] = {}
    for pair in pairs:
        method, dot, rest = pair.partition(".")
        if not dot or "=" in method:
            raise CommonweightError(f"option {pair!r}: wanted method.name=value, for example mos.rank=16")
        out.setdefault(method, {}).update(parse(get(method).config, [rest]))
    return out
