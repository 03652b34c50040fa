"""What modules keep between passes of what their weights gave: under a route it is a reader's, and stays with no other.

In eval mode LeViT keeps its indexed table of attention biases from the first pass on; OmDet-Turbo keeps embeddings of
texts.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from .current import Current
from .entrances import Entrance

# LeViT's, and OmDet-Turbo's two. What others call a cache may hold what no weight gave.
KEEPS = ("attention_bias_cache", "language_cache_class", "language_cache_prompt")


class Forgets(Entrance):
    """The forward of one such module: before and behind it under a route nothing is held. What the plain base left is
    made anew by the base. names: of the attributes that keep. Threads take turns, for all have the same attributes.
    What torch.compile traces is for every route and for the plain base: it holds nothing at all."""

    name = "forward"

    def __init__(self, module: nn.Module, names: list[str], current: Current, over: Entrance | None):
        super().__init__(module, current, over)
        self.names = names

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            self.clear()
            out = self.own(*args, **kwargs)
            self.clear()
            return out
        with self.current.turns:
            if self.current.route is None:
                return self.own(*args, **kwargs)
            try:
                self.clear()
                return self.own(*args, **kwargs)
            finally:
                self.clear()

    def clear(self) -> None:
        for name in self.names:
            held = vars(self.model).get(name)
            if (store := _store(held)) is not None:
                store.clear()
                if hasattr(held, "current_load"):  # OmDet-Turbo counts by itself
                    held.current_load = 0  # type: ignore[union-attr]


def install(modules: Iterable[nn.Module], current: Current, passes: Iterable[Entrance]) -> list[Forgets]:
    """At modules with an attribute that keeps. passes: entrances that run a module reader by reader."""
    over, out = {id(e.model): e for e in passes}, []
    for module in modules:
        if names := [n for n in KEEPS if _store(vars(module).get(n)) is not None]:
            out.append(Forgets(module, names, current, over.get(id(module))))
            out[-1].install()
    return out


def _store(value: Any) -> dict | None:
    """The entries of a dictionary, or of an object around one."""
    value = value if isinstance(value, dict) else getattr(value, "cache", None)
    return value if isinstance(value, dict) else None
