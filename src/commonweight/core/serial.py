"""Frozen dataclasses as JSON. Only classes that were registered by name can come back: an allow-list."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

from .errors import unknown

_CLASSES: dict[str, type] = {}
T = TypeVar("T")


def serial(cls: type[T]) -> type[T]:
    """Class decorator: lets instances be written with `dump` and read with `load`."""
    if cls.__name__ in _CLASSES:
        raise TypeError(f"two classes are called {cls.__name__}")
    _CLASSES[cls.__name__] = cls
    return cls


def registered() -> dict[str, type]:
    """The classes that can come back, by name; later ones too."""
    return _CLASSES


def dump(value: Any) -> Any:
    """JSON-ready form: dataclasses become {"is": name, field: value...}, defaults left out."""
    if is_dataclass(value) and not isinstance(value, type):
        body = {f.name: dump(getattr(value, f.name)) for f in fields(value) if getattr(value, f.name) != f.default}
        return {"is": type(value).__name__, **body}
    if isinstance(value, Mapping):
        return {k: dump(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [dump(v) for v in value]
    return value


def load(value: Any) -> Any:
    """The inverse of `dump`; lists come back as tuples, so that what is read stays hashable."""
    if isinstance(value, dict) and "is" in value:
        name = value["is"]
        if name not in _CLASSES:
            raise unknown("type in a plan", str(name), _CLASSES)
        return _CLASSES[name](**{k: load(v) for k, v in value.items() if k != "is"})
    if isinstance(value, dict):
        return {k: load(v) for k, v in value.items()}
    if isinstance(value, list):
        return tuple(load(v) for v in value)
    return value
