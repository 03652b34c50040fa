"""What modules keep between passes of what their weights gave: under a route it is a reader's, and stays with no other.

In eval mode LeViT keeps its indexed table of attention biases from the first pass on; OmDet-Turbo keeps embeddings of
texts.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

# LeViT's, and OmDet-Turbo's two. What others call a cache may hold what no weight gave.
KEEPS = ("attention_bias_cache", "language_cache_class", "language_cache_prompt")


class Forgets:
    """Of one module: before and behind its forward under a route it holds nothing. What the plain base left is made
    anew by the base. names: of its attributes that keep."""

    def __init__(self, module: nn.Module, names: list[str], current: Any):
        self.module, self.names, self.current = module, names, current

    def install(self) -> list[RemovableHandle]:
        return [
            self.module.register_forward_pre_hook(self),
            self.module.register_forward_hook(self, always_call=True),
        ]

    def __call__(self, *_: Any) -> None:
        if self.current.route is not None and not torch.compiler.is_compiling():
            self.clear()

    def clear(self) -> None:
        for name in self.names:
            held = vars(self.module).get(name)
            if (store := _store(held)) is not None:
                store.clear()
                if hasattr(held, "current_load"):  # OmDet-Turbo counts by itself
                    held.current_load = 0  # type: ignore[union-attr]


def found(modules: Iterable[nn.Module], current: Any) -> list[Forgets]:
    """Modules with an attribute that keeps."""
    each = ((m, [n for n in KEEPS if _store(vars(m).get(n)) is not None]) for m in modules)
    return [Forgets(m, names, current) for m, names in each if names]


def _store(value: Any) -> dict | None:
    """The entries of a dictionary, or of an object around one."""
    value = value if isinstance(value, dict) else getattr(value, "cache", None)
    return value if isinstance(value, dict) else None
