"""The list of lifelong methods: name -> what it is. A method is a config and one generator, a stage of a stream."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..adapt.tasks.base import Example
from ..core import Registry, Site, peers, with_rest
from ..methods import get as adapter_of
from .asks import Carried, Run, Stage

Adapter = Callable[[Any], tuple[str, dict[str, Any]]]


@dataclass(frozen=True)
class Method:
    """One way to learn tasks one after another.

    paper: title and address; id: in the list of surveyed methods. stage: (what the stage is, what was carried over) ->
    a generator that yields `Train`, is sent `Trained`, and returns the next `Carried`. adapter: config -> (a method of
    `commonweight.methods`, its options) of the tenants that are trained. carries: what goes from stage to stage, in
    words; grows: what a further task adds. rows: whether it keeps rows of earlier tasks. goes_on: whether a task that
    nobody has trained is answered by the newest tenant's pools; else by the base. tasks: those of `adapt` it can learn.
    roles: the projections that its tenants read where nobody names sites; empty: the adapter's own; where: (config, the
    adapter's own) -> those of them that it takes. pick: who answers
    rows whose task nobody tells: (stage, what was carried over, rows) -> a task's name for each.
    """

    name: str
    config: type
    paper: str
    stage: Callable[[Stage, Carried], Run]
    adapter: Adapter
    carries: str
    grows: str
    rows: str = "none"
    id: int | None = None
    goes_on: bool = True
    tasks: tuple[str, ...] = ("classify", "lm")
    roles: tuple[str, ...] = ()
    where: Callable[[Any, Sequence[Site]], Sequence[Site]] | None = None
    pick: Callable[[Stage, Carried, Sequence[Example]], list[str]] | None = None


METHODS = Registry[Method]("lifelong method")
available, get = METHODS.available, METHODS.get


def chosen(config: Any) -> tuple[str, dict[str, Any]]:
    """The adapter of a config that lets it be chosen."""
    return config.adapter, dict(config.options)


def method(
    name: str, config: type, **about: Any
) -> Callable[[Callable[[Stage, Carried], Run]], Callable[[Stage, Carried], Run]]:
    """Registers a method under `name` by its stage; about: the other fields of `Method`. adapter: without it, what the
    config's options `adapter` and `options` say. A name or a config used twice raises."""
    about.setdefault("adapter", chosen)

    def register(stage: Callable[[Stage, Carried], Run]) -> Callable[[Stage, Carried], Run]:
        METHODS.add(Method(name=name, config=config, stage=stage, **about))
        return stage

    return register


def resolve(name: str, options: Mapping[str, Any]) -> tuple[Method, Any]:
    """(method, config). Of a method whose adapter can be chosen, options that are not its own are the adapter's."""
    found = get(name)
    return METHODS.resolve(name, with_rest(found.config, options))


def laid(name: str, under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a method and its adapter: those of `over` in place of those of `under`, whoever's names they have."""
    known = {*get(name).config.__dataclass_fields__}  # type: ignore[attr-defined]
    if (adapter := adapter_named(name, under, over)) is not None:
        known |= {*adapter_of(adapter).config.__dataclass_fields__}  # type: ignore[attr-defined]

    def named(given: Mapping[str, Any]) -> dict[str, Any]:
        here = {k: peers.option(k, known) for k in given}
        return {k if here[k] in given else here[k]: v for k, v in given.items()}  # both: an error, when they are read

    return {**named(under), **named(over)}


def adapter_named(name: str, under: Mapping[str, Any], over: Mapping[str, Any]) -> str | None:
    """The adapter that is asked for, or the method's own; None where it cannot be chosen."""
    there = get(name).config.__dataclass_fields__.get("adapter")  # type: ignore[attr-defined]
    return None if there is None else over.get("adapter", under.get("adapter", there.default))
