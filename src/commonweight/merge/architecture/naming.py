"""Names in a file and names of modules, where they differ: files of older models are renamed as they are loaded."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple


class Home(NamedTuple):
    """module: the tensor's name in the model; whole: whether it is the file's tensor itself, and not one that is made
    of several, or a part."""

    module: str
    whole: bool


def homes(model: Any, names: Iterable[str]) -> dict[str, Home]:
    """Name in a file -> where it goes in a transformers model, as `from_pretrained` renames it; without those that the
    model has no place for."""
    there = model.state_dict()
    prefix = getattr(model, "base_model_prefix", "")
    renamed = _renaming(model, there, prefix)
    out = {}
    for name in names:
        at, whole = renamed(name)
        if at not in there and name in there:
            at, whole = name, True
        if at in there:
            out[name] = Home(at, whole)
    return out


def _renaming(model: Any, there: Any, prefix: str) -> Any:
    if not hasattr(model, "base_model_prefix"):  # no model of transformers

        def same(name: str) -> tuple[str, bool]:
            return name, True

        return same
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightRenaming, rename_source_key
    except ImportError:  # a transformers without these: the name of the body in front, or not

        def plain(name: str) -> tuple[str, bool]:
            longer, shorter = f"{prefix}.{name}", name.removeprefix(f"{prefix}.")
            return next((n for n in (name, longer, shorter) if n in there), name), True

        return plain
    every = get_model_conversion_mapping(model)
    plain_ones = [e for e in every if isinstance(e, WeightRenaming)]
    others: Any = [e for e in every if not isinstance(e, WeightRenaming)]

    def as_loaded(name: str) -> tuple[str, bool]:
        at, pattern = rename_source_key(name, plain_ones, others, prefix, there)
        return at, pattern is None

    return as_loaded
