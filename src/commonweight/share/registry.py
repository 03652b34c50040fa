"""The list of sharing methods: name -> what it is. A method is a pure ``plan(anatomy, config) -> Layout``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..builder import Anatomy, Layout
from ..core import CommonweightError, Registry


@dataclass(frozen=True)
class Method:
    """name, config class, plan function, and what a person wants to know before choosing.

    paper: title and address. shares: what is shared, in words. survey: (model, token rows, config) -> numbers by name
    that the plan is made of, for a method that chooses by what the model does with text; such a plan function has a
    third argument, `seen`. surveyed: whether a config needs it. sizes: depth -> options of the sizes that are worth
    looking at. healing: fields of `Distillation` with which `heal` teaches a model that it made, where nothing is said.
    """

    name: str
    config: type
    plan: Callable[..., Layout]
    paper: str
    shares: str
    survey: Callable[..., dict[str, tuple[float, ...]]] | None = None
    surveyed: Callable[[Any], bool] = lambda config: True
    sizes: Callable[[int], list[dict[str, Any]]] = lambda depth: [{}]
    healing: Mapping[str, Any] = field(default_factory=dict)


METHODS = Registry[Method]("sharing method")
available, get, resolve = METHODS.available, METHODS.get, METHODS.resolve


def method(name: str, config: type, **about: Any) -> Callable[[Callable[..., Layout]], Callable[..., Layout]]:
    """Registers a plan function under `name`; a name or a config used twice raises."""

    def register(plan: Callable[..., Layout]) -> Callable[..., Layout]:
        METHODS.add(Method(name=name, config=config, plan=plan, **about))
        return plan

    return register


def layout_of(method: Method, anatomy: Anatomy, config: Any, seen: Mapping[str, tuple[float, ...]] | None) -> Layout:
    """The method's plan. Raises: CommonweightError where it reads what the model does with text, and none was read."""
    if method.survey is None:
        return method.plan(anatomy, config)
    if seen is None and method.surveyed(config):
        raise CommonweightError(
            f"{method.name} chooses by what the model does with text; give it some: rows=... (--rows FILE)"
        )
    return method.plan(anatomy, config, {} if seen is None else seen)
