"""A model made smaller: the method's plan, and the model that is built of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from ..builder import Layout, anatomy, build
from ..builder.load import holds
from ..core import CommonweightError, dump
from ..core.version import library
from .methods import Method, layout_of, resolve


def unshared(model: str | Path) -> None:
    """Raises: CommonweightError where a shared model lies there already."""
    if holds(model):
        raise CommonweightError(f"model {str(model)!r} is a shared model already; share the one that it was made of")


def share(
    model: nn.Module, method: str | Any = "recursive", *, rows: Sequence[Any] | None = None, **options: Any
) -> Any:
    """A smaller model whose layers, matrices or positions read common pools; `model` stays as it is.

    method: a name of `available()` with options, or a config. rows: token numbers (lists, or rows as `adapt` reads
    them), for methods that choose by what the model does with text. The result is a model of transformers: one module a
    depth, whose parameters are the same tensors; ``config.sharing`` says which. It still has to be healed: `heal`.
    Cost: the unique parameters in memory, and with an SVD init one SVD for each relaxed matrix.
    Raises: CommonweightError for an unknown method or option, and for a model without one list of blocks.
    """
    found, config = resolve(method, options)
    small = build(model, _layout(model, found, config, rows))
    if hasattr(small, "config"):
        told = dump(config)
        told.pop("is")
        small.config.sharing = {**small.config.sharing, "method": found.name, "options": told, "by": library()}
    return small


def layout(
    model: nn.Module, method: str | Any = "recursive", *, rows: Sequence[Any] | None = None, **options: Any
) -> Layout:
    """What `share` would build, as data: it can be counted, and `model` may be on the meta device."""
    found, config = resolve(method, options)
    return _layout(model, found, config, rows)


def _layout(model: nn.Module, method: Method, config: Any, rows: Sequence[Any] | None) -> Layout:
    sharing = getattr(getattr(model, "config", None), "sharing", None) or {}
    if sharing.get("forms") or sharing.get("outside"):
        raise CommonweightError(
            f"{type(model).__name__} is a shared model already ({sharing.get('method', 'depths')}), whose layers read "
            "pools; share the one that it was made of"
        )
    about = anatomy(model)
    wanted = method.survey is not None and rows is not None and method.surveyed(config)
    seen = method.survey(model, rows, config) if wanted and method.survey is not None else None
    return layout_of(method, about, config, seen)
