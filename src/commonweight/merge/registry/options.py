"""What a method may be told: types and ranges as annotations, read from its signature and checked."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import wraps
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from torch import Tensor

from ...core import CommonweightError, counted, unknown
from ..statistics import open_statistics


@dataclass(frozen=True)
class Range:
    """What an annotated number must lie in; each: one number for all models, or one for every model."""

    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None
    each: bool = False


@dataclass(frozen=True)
class Beside:
    """An option that is a file beside the models (see `Statistics`): what a method must know of data.

    kind: what it must hold. each: one for every model (else one for all). fewer: for so many models less.
    """

    kind: str
    each: bool = True
    fewer: int = 0


PerModel = float | Sequence[float]
Density = Annotated[PerModel, Range(gt=0, le=1, each=True)]
Each = Annotated[PerModel, Range(each=True)]
Share = Annotated[float, Range(ge=0, le=1)]
Positive = Annotated[float, Range(gt=0)]
Count = Annotated[int, Range(ge=1)]
Coefficients = Annotated[Any, Beside("coefficients", each=False)]


def flat(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """An argument that is a dataclass, given field by field: options that several methods share are said once."""
    hints = get_type_hints(function, include_extras=True)
    groups = {n: h for n, h in hints.items() if isinstance(h, type) and is_dataclass(h)}
    if not groups:
        return function
    one, key = [], inspect.Parameter.KEYWORD_ONLY
    for p in inspect.signature(function).parameters.values():
        if p.name not in groups:
            one.append(p.replace(annotation=hints.get(p.name, p.annotation)))
            continue
        inner = get_type_hints(groups[p.name], include_extras=True)
        for f in fields(groups[p.name]):
            one.append(inspect.Parameter(f.name, key, default=f.default, annotation=inner[f.name]))

    @wraps(function)
    def given(*args: Any, **options: Any) -> Tensor:
        for name, kind in groups.items():
            options[name] = kind(**{f.name: options.pop(f.name) for f in fields(kind) if f.name in options})
        return function(*args, **options)

    del given.__wrapped__  # so that nobody sees the groups
    given.__signature__ = inspect.Signature(one, return_annotation=Tensor)  # type: ignore[attr-defined]
    given.__annotations__ = {p.name: p.annotation for p in one}
    return given


def checked(owner: str, name: str, value: Any, hint: Any, n: int) -> Any:
    kinds, limit = _parts(hint)
    if isinstance(limit, Beside):
        return None if value is None and type(None) in kinds else _beside(owner, name, value, limit, n)
    if limit and limit.each and isinstance(value, Sequence) and not isinstance(value, str):
        if len(value) != n:
            raise CommonweightError(
                f"{owner}: {name} has {counted(len(value), 'value')} for {counted(n, 'model')}; give one, or {n}"
            )
        return tuple(_number(owner, f"{name}[{i}]", v, limit) for i, v in enumerate(value))
    if value is None and type(None) in kinds:
        return None
    for kind in kinds:
        if get_origin(kind) is Literal:
            if value in get_args(kind):
                return value
            raise unknown(f"{name} of {owner}", str(value), map(str, get_args(kind)))
        if kind is bool and isinstance(value, bool):
            return value
        if kind is int and isinstance(value, int) and not isinstance(value, bool):
            return _number(owner, name, value, limit)
        if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
            found = _number(owner, name, float(value), limit)
            return (found,) * n if limit and limit.each else found
    raise CommonweightError(
        f"{owner}: {name} is {value!r}; wanted {' or '.join(getattr(k, '__name__', str(k)) for k in kinds)}"
    )


def _beside(owner: str, name: str, value: Any, limit: Beside, n: int) -> Any:
    if not limit.each:
        return open_statistics(value, f"{owner}: {name}", limit.kind)
    n -= limit.fewer
    values = list(value) if isinstance(value, list | tuple) else [value]
    if len(values) != n:
        raise CommonweightError(
            f"{owner}: {name} has {counted(len(values), 'file')} for {counted(n, 'model')}; give one for each, in order"
        )
    return tuple(open_statistics(v, f"{owner}: {name}[{i}]", limit.kind) for i, v in enumerate(values))


def _parts(hint: Any) -> tuple[tuple[Any, ...], Range | Beside | None]:
    """(the types it may have, the range of its numbers or what the file must hold)."""
    if get_origin(hint) is Annotated:
        inner, *more = get_args(hint)
        return _parts(inner)[0], next((m for m in more if isinstance(m, Range | Beside)), None)
    if get_origin(hint) not in (Union, UnionType):
        return (hint,), None
    found = [_parts(h) for h in get_args(hint)]
    return tuple(k for kinds, _ in found for k in kinds), next((r for _, r in found if r), None)


def limit(hint: Any) -> Range | Beside | None:
    """What an option's annotation says of its values."""
    return _parts(hint)[1]


def _number(owner: str, name: str, value: Any, limit: Range | None) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value or abs(value) == float("inf"):
        raise CommonweightError(f"{owner}: {name} is {value!r}; wanted a finite number")
    for bound, ok, sign in () if limit is None else (
        (limit.ge, lambda v, b: v >= b, ">="),
        (limit.gt, lambda v, b: v > b, ">"),
        (limit.le, lambda v, b: v <= b, "<="),
        (limit.lt, lambda v, b: v < b, "<"),
    ):  # fmt: skip
        if bound is not None and not ok(value, bound):
            raise CommonweightError(f"{owner}: {name} is {value:g}; it must be {sign} {bound:g}")
    return value
