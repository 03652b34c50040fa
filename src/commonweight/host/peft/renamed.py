"""Modules by the names that transformers had for them before: LLaVA's, Qwen2-VL's and ViT's of transformers 4."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import nn

from ...formats.peft.keys import bare
from ..hooked import HookedModel
from ..names import named


def old_names(base: HookedModel, paths: Iterable[list[str]]) -> dict[str, str]:
    """{module of the host's model: what a file calls it}, of the paths whose beginning transformers would rename.

    paths: keys of a file, cut at their dots. The names are those by which transformers itself finds the weights of an
    older checkpoint; modules that it joins or cuts in two are not among them.
    """
    modules = {bare(n) for n, _ in named(base.model) if n}
    found = next(((n, m) for n, m in named(base.model) if hasattr(m, "base_model_prefix")), None)
    now = None if found is None else _renaming(found[1])
    if found is None or now is None:
        return {}
    start, out = f"{bare(found[0])}." if found[0] else "", dict[str, str]()
    for path in paths:
        for i in range(len(path) - 1, 0, -1):
            old = ".".join(path[:i])
            new = start + now(old)
            if new in modules and new != start + old:
                out.setdefault(new, old)
                break
    return out


def _renaming(model: nn.Module) -> Callable[[str], str] | None:
    """A module's name in an older checkpoint -> its name in this model; None where transformers knows of none."""
    try:
        from transformers import PreTrainedModel
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightRenaming, rename_source_key
    except ImportError:  # as it was in transformers 5.0
        return None
    if not isinstance(model, PreTrainedModel):
        return None
    ways = [w for w in get_model_conversion_mapping(model, add_legacy=False) if isinstance(w, WeightRenaming)]
    if not ways:
        return None
    held: Any = dict.fromkeys([f"{n}.weight" for n, _ in model.named_modules()], 0)

    def now(name: str) -> str:
        new, _ = rename_source_key(f"{name}.weight", ways, [], model.base_model_prefix, held)
        return new.removesuffix(".weight")

    return now
