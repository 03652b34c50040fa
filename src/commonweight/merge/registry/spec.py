"""A merge method: one pure function over one tensor, and what it needs to be run.

A method's keyword signature is its configuration. Types and ranges are read from the annotations, so that one
place says them; `compat` picks the form that another implementation has where it differs from the paper.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, get_type_hints

from torch import Tensor

from ...core import CommonweightError, unknown
from ..sources.at import At
from .options import checked
from .steps import Piece, Round


@dataclass(frozen=True)
class Survey:
    """A first pass over the data, in rounds, before the tensor function is called with what it `seen`.

    look(tensors, base, at=, seen=, weights=, **config): a dict of small things that ADD UP (+=) over the pieces of a
    tensor, and over the tensors of a model. join(total, seen, numel=, **config): (seen, done); `seen` is None at first.
    scope(config): "tensor", "model", or None when this configuration needs no survey. skip(seen, at, count, config):
    whether this round would find nothing in the `count` elements from `at` on, which are then not read.
    every(seen, numel, config): one element in so many is enough for this round; the others are not read.
    steps(seen, numel, config): what look() does in this round, for a compiled loop, or None.
    """

    look: Callable[..., dict[str, Any]]
    join: Callable[..., tuple[Any, bool]]
    scope: Callable[[Mapping[str, Any]], Literal["tensor", "model"] | None]
    skip: Callable[[Any, At, int, Mapping[str, Any]], bool] | None = None
    every: Callable[[Any, int, Mapping[str, Any]], int] | None = None
    steps: Callable[[Any, int, Mapping[str, Any]], Round | None] | None = None


CONTEXT = ("weights", "at", "seen")


@dataclass(frozen=True)
class Method:
    """A merge method. Call it with models; `function` is its pure function over one tensor, `run` applies it to
    models.

    by: how small a piece the function takes: "element" (any slice along the first dimension), "row" (slices of
    a matrix along the first dimension; vectors whole) or "tensor". base, models: what inputs it takes.
    data: what it needs besides weights: "none"; "statistics" of each model (`commonweight statistics`); "unlabeled" or
    "labeled" rows, from which learn() finds what the function then reads as an option.
    learn: (model, models, base, data, ...) -> the `Statistics` to give as that option; see its own words.
    normalises: it divides by the sum of the weights, which must not be zero.
    steps(config, at, seen): what the function does, for a compiled loop, or None. `weights` is among the config.
    same: the implementations whose form is the paper's; compat: those that have a form of their own here.
    """

    name: str
    function: Callable[..., Tensor]
    run: Callable[..., dict[str, Tensor]]
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
    steps: Callable[[Mapping[str, Any], At, Any], Piece | None] | None = None
    same: tuple[str, ...] = ()
    compat: tuple[str, ...] = field(default=())

    def __call__(self, models: Any, base: Any = None, **options: Any) -> dict[str, Tensor]:
        """Merged state dict. See `commonweight.merge.merge`."""
        return self.run(self, models, base, **options)

    def options(self) -> Mapping[str, tuple[Any, Any]]:
        """Option -> (annotation, default)."""
        return self._options

    @cached_property
    def _options(self) -> Mapping[str, tuple[Any, Any]]:
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
            out[name] = checked(self.name, name, value, hint, n)
        if wrong := self.check(out, n):
            raise CommonweightError(f"{self.name}: {wrong}")
        return out
