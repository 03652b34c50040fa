"""A model made smaller: the method's plan, and the model that is built of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from ..builder import anatomy, build
from ..core import dump
from ..core.version import library
from .methods import layout_of, resolve


def share(model: nn.Module, method: str | Any = "recursive", *, rows: Sequence[Any] | None = None, **options: Any) -> Any:
    """A smaller model whose layers, matrices or positions read common pools; `model` stays as it is.

    method: a name of `available()` with options, or a config. rows: token numbers (lists, or rows as `adapt` reads
    them), for methods that choose by what the model does with text. The result is a model of transformers: one module a
    depth, whose parameters are the same tensors; ``config.sharing`` says which. It still has to be healed: `heal`.
    Cost: the unique parameters in memory, and with an SVD init one SVD for each relaxed matrix.
    Raises: CommonweightError for an unknown method or option, and for a model without one list of blocks.
    """
    found, config = resolve(method, options)
    seen = None if found.survey is None or rows is None else found.survey(model, rows, config)
    layout = layout_of(found, anatomy(model), config, seen)
    small = build(model, layout)
    if hasattr(small, "config"):
        told = dump(config)
        told.pop("is")
        small.config.sharing = {**small.config.sharing, "method": found.name, "options": told, "by": library()}
    small.__dict__["_cw_layout"] = layout
    return small
