"""A method's options: a frozen dataclass whose fields are checked by type and range, wherever it is made."""

from __future__ import annotations

import json
import sys
from collections.abc import Collection, Mapping
from dataclasses import MISSING, dataclass, field, fields
from functools import cache
from types import MappingProxyType
from typing import Any, Literal, TypeVar, dataclass_transform, get_args, get_origin, get_type_hints

from . import peers
from .errors import CommonweightError, unknown

T = TypeVar("T")


def option(
    default: Any, help: str, *, ge: float | None = None, le: float | None = None, gt: float | None = None,
    globs: bool = False,
) -> Any:  # fmt: skip
    """A field of a config: its default, one line of help, and the range it must lie in. globs: it names sites, by globs
    joined with ``|`` or the first of each of its pairs."""
    return field(default=default, metadata={"help": help, "ge": ge, "le": le, "gt": gt, "globs": globs})


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(option, field))
def config(cls: type[T]) -> type[T]:
    """Class decorator: a frozen, keyword-only dataclass that checks every field when it is made.

    A method ``check(self) -> str | None`` on the class may return what is wrong between fields.
    """

    def __post_init__(self: Any) -> None:
        hints = _hints(type(self))
        for f in fields(self):
            value = _typed(type(self).__name__, f.name, getattr(self, f.name), hints[f.name])
            object.__setattr__(self, f.name, value)
            _in_range(type(self).__name__, f.name, value, f.metadata)
        wrong = self.check() if hasattr(self, "check") else None
        if wrong:
            raise CommonweightError(f"{type(self).__name__}: {wrong}")

    cls.__post_init__ = __post_init__
    return dataclass(frozen=True, kw_only=True)(cls)


def build(cls: type[T], options: Mapping[str, Any]) -> T:
    """A config from options by name, also by the name that PEFT or transformers has for the same; an unknown name is an
    error with the nearest one."""
    return cls(**own(cls, options))


def gone(cls: type) -> Mapping[str, str]:
    """Options that a config had once, and why it has them no more: its class says so in ``GONE``."""
    return getattr(cls, "GONE", {})


def build_stored(cls: type[T], options: Mapping[str, Any]) -> T:
    """`build` of what a file says, which may be older: options that are gone are passed over."""
    return build(cls, {k: v for k, v in options.items() if k not in gone(cls)})


def own(cls: type, options: Mapping[str, Any]) -> dict[str, Any]:
    """Options by the names that a config itself has for them: for `build`, and to be put over others."""
    known = {f.name for f in fields(cls)}
    out: dict[str, Any] = {}
    for name, value in options.items():
        _put(out, cls, name, value, known)
    return out


def _put(out: dict[str, Any], cls: type, name: str, value: Any, known: Collection[str]) -> None:
    here = peers.option(name, known)
    if here not in known:
        if name in gone(cls):
            raise CommonweightError(f"{name!r} is no option of {cls.__name__} any more: {gone(cls)[name]}")
        hint = peers.elsewhere(name)
        if hint is not None:
            raise CommonweightError(f"{name!r} is not an option of {cls.__name__}: {hint}")
        raise unknown(f"option of {cls.__name__}", str(name), known)
    if here in out:
        raise CommonweightError(f"{cls.__name__}: {here} is given twice, once as {name}; give one")
    out[here] = value


def parse(cls: type, pairs: list[str]) -> dict[str, Any]:
    """Options from ``name=value`` strings of a command line, converted by the field's type."""
    hints = _hints(cls)
    out: dict[str, Any] = {}
    for pair in pairs:
        name, eq, text = pair.partition("=")
        if not eq:
            raise CommonweightError(f"option {pair!r}: wanted name=value, for example rank=8")
        here = peers.option(name, hints)
        out.pop(here, None)  # the last of several
        _put(out, cls, here, None, hints)
        out[here] = _from_text(cls.__name__, here, text, hints[here])
    return out


def globs(config: Any) -> list[tuple[str, str]]:
    """(option, glob) of all globs by which a config names sites."""
    out: list[tuple[str, str]] = []
    for f in fields(config):
        if f.metadata.get("globs") and (given := getattr(config, f.name)):
            out += [(f.name, g) for g in (given.split("|") if isinstance(given, str) else (pair[0] for pair in given))]
    return [(name, glob.strip()) for name, glob in out]


def table(cls: type) -> list[tuple[str, str, Any, str]]:
    """(name, type, default, help) of every option."""
    hints = _hints(cls)
    return [
        (f.name, _show(hints[f.name]), None if f.default is MISSING else f.default, f.metadata.get("help", ""))
        for f in fields(cls)  # type: ignore[arg-type]
    ]


@cache
def _hints(cls: type) -> Mapping[str, Any]:
    """Types of the fields by name; to read them takes a fifth of a millisecond."""
    return MappingProxyType(get_type_hints(cls))


def _kinds(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) not in (None, Literal, tuple, dict) else (hint,)


def _show(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return "|".join(map(str, get_args(hint)))
    if get_origin(hint) is None:
        return "none" if hint is type(None) else hint.__name__
    if get_origin(hint) in (tuple, dict):
        return str(hint)
    return "|".join(_show(k) for k in get_args(hint))


def _fits(value: Any, hint: Any) -> bool:
    origin = get_origin(hint)
    if origin is Literal:
        return value in get_args(hint)
    if origin is tuple:
        return isinstance(value, tuple) and _elements_fit(value, get_args(hint))
    if hint is float:  # neither infinite nor NaN: no option has a use for them, and JSON has no word for them
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return number and abs(value) <= sys.float_info.max
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63
    return isinstance(value, origin or hint)


def _elements_fit(value: tuple[Any, ...], hints: tuple[Any, ...]) -> bool:
    if len(hints) == 2 and hints[1] is ...:
        return all(_fits(v, hints[0]) for v in value)
    return len(value) == len(hints) and all(map(_fits, value, hints))


def _frozen(value: Any) -> Any:
    """Lists, as JSON gives them, as tuples, however deep."""
    return tuple(map(_frozen, value)) if isinstance(value, list | tuple) else value


def _typed(owner: str, name: str, value: Any, hint: Any) -> Any:
    value = _frozen(value)
    for kind in _kinds(hint):
        if _fits(value, kind):
            return float(value) if kind is float else value
    big = isinstance(value, int) and abs(value) >= 2**63  # Python does not write out what has over 4,300 digits
    shown = f"a number of {value.bit_length()} bits" if big else repr(value)
    raise CommonweightError(f"{owner}: {name} is {shown}; wanted {_wanted(hint)}")


def _wanted(hint: Any) -> str:
    return f"{_show(hint)}, finite" if float in _kinds(hint) else _show(hint)


def _in_range(owner: str, name: str, value: Any, meta: Mapping[str, Any]) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return
    for key, ok, sign in (
        ("ge", lambda v, b: v >= b, ">="),
        ("le", lambda v, b: v <= b, "<="),
        ("gt", lambda v, b: v > b, ">"),
    ):
        bound = meta.get(key)
        if bound is not None and not ok(value, bound):
            raise CommonweightError(f"{owner}: {name} is {value}; it must be {sign} {bound}")


def _from_text(owner: str, name: str, text: str, hint: Any) -> Any:
    for kind in _kinds(hint):
        try:
            if kind is type(None) and text.lower() in ("none", "null", ""):
                return None
            if kind is bool and text.lower() in ("true", "false", "1", "0", "yes", "no"):
                return text.lower() in ("true", "1", "yes")
            if kind in (int, float):
                return kind(text)
            if get_origin(kind) is tuple and isinstance(value := json.loads(text), list):
                return _frozen(value)
            if get_origin(kind) is Literal:
                if (choice := {str(k): k for k in get_args(kind)}.get(text)) is not None:
                    return choice
            elif kind is str:
                return text
        except ValueError:
            continue
    inside = get_args(hint)
    example = '[["*.q", 4]]' if any(map(get_args, inside)) else '["*.q"]' if str in inside else "[4] or [0, 4]"
    form = f", written as JSON: {example}" if get_origin(hint) is tuple else ""
    raise CommonweightError(f"{owner}: {name}={text}: wanted {_show(hint)}{form}")
