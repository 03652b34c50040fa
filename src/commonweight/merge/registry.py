"""The list of merge methods: name -> one pure function over one tensor, and what it needs to be run.

A method's keyword signature is its configuration. Types and ranges are read from the annotations, so that one
place says them; `compat` picks the form that another implementation has where it differs from the paper.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from functools import wraps
from types import UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from torch import Tensor

from ..core import CommonweightError, unknown


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


class At(NamedTuple):
    """Where a piece lies: its tensor, its first element in that tensor, and that tensor's first element in the model.

    The model is its tensors one after the other, sorted by name. depth: (block, number of blocks), outside of blocks
    none.
    """

    name: str
    shape: tuple[int, ...]
    start: int = 0
    offset: int = 0
    depth: tuple[int, int] | None = None


def depths(names: Iterable[str]) -> dict[str, tuple[int, int] | None]:
    """Name -> (block, number of blocks): a block is the first number that stands alone between dots."""
    found = {n: re.search(r"(?:^|\.)(\d+)\.", n) for n in names}
    blocks = 1 + max((int(m[1]) for m in found.values() if m), default=-1)
    return {n: (int(m[1]), blocks) if m else None for n, m in found.items()}


@dataclass(frozen=True)
class Survey:
    """A first pass over the data, in rounds, before the tensor function is called with what it `seen`.

    look(tensors, base, at=, seen=, weights=, **config): a dict of small tensors that ADD UP over the pieces of a
    tensor, and over the tensors of a model. join(total, seen, numel=, **config): (seen, done); `seen` is None at first.
    scope(config): "tensor", "model", or None when this configuration needs no survey. skip(seen, at, count, config):
    whether this round would find nothing in the `count` elements from `at` on, which are then not read.
    """

    look: Callable[..., dict[str, Tensor]]
    join: Callable[..., tuple[Any, bool]]
    scope: Callable[[Mapping[str, Any]], Literal["tensor", "model"] | None]
    skip: Callable[[Any, At, int, Mapping[str, Any]], bool] | None = None


CONTEXT = ("weights", "at", "seen")


@dataclass(frozen=True)
class Method:
    """A way of merging. Call it on models; `function` is the pure function over one tensor.

    by: how small a piece the function takes: "element" (any slice along the first dimension), "row" (slices of
    a matrix along the first dimension; vectors whole) or "tensor". base, models: what inputs it takes.
    data: what it needs beside weights: "none"; "statistics" of each model (`commonweight statistics`); "unlabeled" or
    "labeled" rows, from which learn() finds what the function then reads as an option.
    learn: (model, models, base, data, ...) -> the `Statistics` to give as that option; see its own words.
    normalises: weights that sum to zero have no meaning.
    same: the implementations whose form is the paper's; compat: those that have a form of their own here.
    """

    name: str
    function: Callable[..., Tensor]
    paper: str
    equation: str
    base: Literal["required", "optional", "none"] = "required"
    models: tuple[int, int | None] = (1, None)
    weight: float | Literal["1/T"] = 1.0
    by: Callable[[Mapping[str, Any]], str] = lambda config: "element"
    survey: Survey | None = None
    data: Literal["none", "statistics", "unlabeled", "labeled"] = "none"
    learn: Callable[..., Any] | None = None
    normalises: Callable[[Mapping[str, Any]], bool] = lambda config: False
    check: Callable[[Mapping[str, Any], int], str | None] = lambda config, n: None
    same: tuple[str, ...] = ()
    compat: tuple[str, ...] = field(default=())

    def __call__(self, models: Any, base: Any = None, **options: Any) -> dict[str, Tensor]:
        """Merged state dict. See `commonweight.merge.merge`."""
        from .run import run

        return run(self, models, base, **options)

    def options(self) -> dict[str, tuple[Any, Any]]:
        """Option -> (annotation, default)."""
        hints = get_type_hints(self.function, include_extras=True)
        found = inspect.signature(self.function).parameters.values()
        return {
            p.name: (hints[p.name], p.default)
            for p in found
            if p.kind is inspect.Parameter.KEYWORD_ONLY and p.name not in CONTEXT
        }

    def resolve(self, options: Mapping[str, Any], n: int) -> dict[str, Any]:
        """Every option with its value, checked; options of one number a model become tuples of `n`."""
        known, out = self.options(), {}
        compat = options.get("compat")
        if compat in self.same:
            options = {k: v for k, v in options.items() if k != "compat"}
        elif compat is not None and compat not in self.compat:
            raise unknown(f"compat of {self.name}", str(compat), [*self.same, *self.compat])
        for name in options:
            if name not in known:
                raise unknown(f"option of {self.name}", str(name), [*known, "weights"])
        for name, (hint, default) in known.items():
            if name not in options and default is inspect.Parameter.empty:
                raise CommonweightError(f"{self.name}: the option {name} is missing; give {name}=")
            value = options.get(name, default)
            out[name] = _checked(self.name, name, value, hint, n)
        if wrong := self.check(out, n):
            raise CommonweightError(f"{self.name}: {wrong}")
        return out


def _flat(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
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
    def flat(*args: Any, **options: Any) -> Tensor:
        for name, kind in groups.items():
            options[name] = kind(**{f.name: options.pop(f.name) for f in fields(kind) if f.name in options})
        return function(*args, **options)

    del flat.__wrapped__  # so that nobody sees the groups
    flat.__signature__ = inspect.Signature(one, return_annotation=Tensor)  # type: ignore[attr-defined]
    flat.__annotations__ = {p.name: p.annotation for p in one}
    return flat


_METHODS: dict[str, Method] = {}


def method(name: str, **about: Any) -> Callable[[Callable[..., Tensor]], Method]:
    """Registers a function `(tensors, base, *, weights, **config) -> Tensor`; a name used twice raises."""

    def register(function: Callable[..., Tensor]) -> Method:
        if name in _METHODS:
            raise TypeError(f"the merge method {name!r} is registered twice")
        function = _flat(function)
        hint = get_type_hints(function).get("compat")
        names = tuple(v for kind in get_args(hint) for v in get_args(kind)) if hint else ()
        made = _METHODS[name] = Method(name=name, function=function, compat=names, **about)
        # help() and an editor's hover show the function's own words
        object.__setattr__(made, "__doc__", function.__doc__)
        return made

    return register


def available() -> Mapping[str, Method]:
    """Every merge method by name."""
    return dict(sorted(_METHODS.items()))


def get(name: str) -> Method:
    if name not in _METHODS:
        raise unknown("merge method", str(name), _METHODS)
    return _METHODS[name]


def _checked(owner: str, name: str, value: Any, hint: Any, n: int) -> Any:
    kinds, limit = _parts(hint)
    if isinstance(limit, Beside):
        return None if value is None and type(None) in kinds else _beside(owner, name, value, limit, n)
    if limit and limit.each and isinstance(value, Sequence) and not isinstance(value, str):
        if len(value) != n:
            raise CommonweightError(f"{owner}: {name} has {len(value)} values for {n} models; give one, or {n}")
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
    from .statistics import open_statistics

    if not limit.each:
        return open_statistics(value, f"{owner}: {name}", limit.kind)
    n -= limit.fewer
    values = list(value) if isinstance(value, list | tuple) else [value]
    if len(values) != n:
        raise CommonweightError(f"{owner}: {name} has {len(values)} files for {n} models; give one for each, in order")
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
