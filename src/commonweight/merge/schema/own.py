"""Recipes in this project's own schema."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ...core import CommonweightError, counted, unknown
from .. import registry
from .fields import keys, listed, mapping, padding, precision, text
from .settings import Gradient, ranges, select
from .types import WEIGHT, Input, Recipe, Rule, Slice, Vocabulary

KEYS = ("method", "base", "models", "slices", "options", "weights", "rules", "dtype", "tokenizer")


def read(body: Mapping[str, Any]) -> Recipe:
    """Raises: CommonweightError for keys, methods and options that are not known, with the nearest that is."""
    keys("recipe", body, KEYS)
    if not isinstance(body.get("method"), str):
        raise CommonweightError(f"recipe: method is missing; known: {', '.join(registry.available())}")
    if ("models" in body) == ("slices" in body):
        raise CommonweightError("recipe: give either models or slices")
    rules = tuple(_rule(i, r) for i, r in enumerate(listed("rules", body.get("rules", []), 0)))
    methods = [registry.get(m) for m in {body["method"], *(r.method for r in rules if r.method)}]
    known = sorted({o for m in methods for o in m.options()})
    settings = options("options", body.get("options", {}), known)
    if "models" in body:
        slices: tuple[Slice, ...] = (Slice(_models("models", body["models"], known)),)
    else:
        slices = tuple(_slice(i, s, known) for i, s in enumerate(listed("slices", body["slices"])))
    for rule in rules:
        options("rules", rule.settings, known)
    if (weights := body.get("weights")) is not None:
        settings = {**settings, WEIGHT: weights if isinstance(weights, int | float) else _weights(weights, slices)}
    return Recipe(
        body["method"], slices, text("base", body.get("base")), settings, rules, dtype("dtype", body.get("dtype")),
        _vocabulary(body.get("tokenizer")),
    )  # fmt: skip


def setting(where: str, value: Any) -> Any:
    """A number, flag or word; a list of them, one for each model; or {gradient: [first block, ..., last block]}."""
    if isinstance(value, Mapping):
        keys(where, value, ("gradient",))
        steps = value.get("gradient")
        if not isinstance(steps, list) or not steps or not all(isinstance(s, int | float | str) for s in steps):
            raise CommonweightError(
                f"{where}: gradient is {steps!r}; wanted a list of values, from first block to last"
            )
        return Gradient(tuple(steps))
    if isinstance(value, list):
        return tuple(setting(where, v) for v in value)
    return value


def options(where: str, body: Any, known: Iterable[str]) -> dict[str, Any]:
    mapping(where, body)
    for key in body:
        if key not in known:
            raise unknown(f"option in {where}", str(key), [*known])
    return {k: setting(f"{where}.{k}", v) for k, v in body.items()}


def dtype(where: str, value: Any) -> str | None:
    return precision(where, value)


def _models(where: str, body: Any, known: list[str], layers: bool = False) -> tuple[Input, ...]:
    out = []
    for i, entry in enumerate(listed(where, body)):
        if isinstance(entry, str):
            entry = {"model": entry}
        here = f"{where}[{i}]"
        mapping(here, entry)
        more = {k: v for k, v in entry.items() if k not in ("model", WEIGHT, *(("layers",) if layers else ()))}
        for key in more:
            if key not in known:
                raise unknown(f"key in {here}", str(key), ["model", WEIGHT, *(["layers"] if layers else []), *known])
        if not isinstance(entry.get("model"), str):
            raise CommonweightError(f"{here}: model is {entry.get('model')!r}; wanted a path or a hub name")
        settings = {k: setting(f"{here}.{k}", v) for k, v in entry.items() if k == WEIGHT or k in more}
        out.append(
            Input(entry["model"], settings, _span(here, entry["layers"]) if layers and "layers" in entry else None)
        )
    return tuple(out)


def _slice(i: int, body: Any, known: list[str]) -> Slice:
    where = f"slices[{i}]"
    mapping(where, body)
    keys(where, body, ("models", "options"))
    inputs = _models(f"{where}.models", body.get("models"), known, layers=True)
    if not all(x.layers for x in inputs):
        raise CommonweightError(f"{where}: every model of a slice needs layers, as in layers: 0-11")
    return Slice(inputs, options(f"{where}.options", body.get("options", {}), known))


def _span(where: str, value: Any) -> tuple[int, int]:
    found = ranges(where, value)
    if len(found) != 1:
        raise CommonweightError(f"{where}: layers is {value!r}; wanted one range, as in 0-11")
    return found[0][0], found[0][1] + 1


def _rule(i: int, body: Any) -> Rule:
    where = f"rules[{i}]"
    mapping(where, body)
    keys(where, body, ("tensors", "layers", "method", "options", "weights", "take", "drop"))
    said = {k: v for k, v in body.items() if v is not None}
    if "tensors" not in said and "layers" not in said:
        raise CommonweightError(f"{where}: say which tensors it is for: tensors, layers, or both")
    what = said.keys() - {"tensors", "layers"}
    if not what or len(what & {"method", "take", "drop"}) > 1 or (what & {"take", "drop"} and len(what) > 1):
        came = ", ".join(k for k in said if k in what) or "nothing"
        raise CommonweightError(
            f"{where}: it says {came}; wanted take alone, drop alone, or a method, options and weights"
        )
    if (method := said.get("method")) is not None:
        registry.get(str(method))
    weights, drop = said.get("weights"), said.get("drop")
    if drop is not None and not isinstance(drop, bool):
        raise CommonweightError(f"{where}: drop is {drop!r}; wanted true or false")
    return Rule(
        select(where, said.get("tensors"), said.get("layers")), method,
        {k: setting(f"{where}.{k}", v) for k, v in mapping(f"{where}.options", said.get("options", {})).items()},
        None if weights is None else tuple(setting(where, w) for w in listed(f"{where}.weights", weights)),
        text(f"{where}.take", said.get("take")), drop,
    )  # fmt: skip


def _weights(weights: Any, slices: tuple[Slice, ...]) -> tuple[Any, ...]:
    found = tuple(setting("weights", w) for w in listed("weights", weights))
    if any(len(s.inputs) != len(found) for s in slices):
        raise CommonweightError(
            f"weights: {len(found)} for {counted(len(slices[0].inputs), 'model')}; give one for each model"
        )
    return found


def _vocabulary(body: Any) -> Vocabulary | None:
    if body is None:
        return None
    if isinstance(body, str):
        return Vocabulary(body)
    mapping("tokenizer", body)
    keys("tokenizer", body, ("source", "tokens", "multiple"))
    tokens = mapping("tokenizer.tokens", body.get("tokens", {}))
    return Vocabulary(
        text("tokenizer.source", body.get("source")) or "union",
        {str(k): str(v) for k, v in tokens.items()},
        padding("tokenizer.multiple", body.get("multiple", 1)),
    )
