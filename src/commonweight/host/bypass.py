"""A block that every row of a pass skips is not called: what it was given is its answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from .current import Current
from .sites import Block
from .skips import Skip


class Bypass:
    """In the place of a block's `forward` from its first gated pass on, which shows what it gives.

    form: puts states into such an answer; None where that is not known, or where the block gives other tensors too
    (T5's first one the positions that all others add): it is called then, and its answer left. In the pass that shows
    it the block is called even where a checkpoint computes it again, which must save as many tensors.
    """

    def __init__(self, at: Block, current: Current):
        self.at, self.current = at, current
        self.form: Callable[[Any], Any] | None = None
        self.own: Any = None  # the forward before it
        self.held = self.known = self.closed = False  # held: the module had it in its dictionary

    def note(self, skip: Skip, y: Any, at: int | None) -> None:
        """What the block has answered; its states are at `at`, None: they are all of it."""
        if skip.draws is not None:
            skip.draws.again()
        if self.known or self.closed or not skip.called or torch.compiler.is_compiling():
            return
        self.known = True
        if torch.is_grad_enabled():
            self.current.thread.run.shown.add(self.at.name)
        if at is None:
            self.form = _itself
        elif isinstance(y, tuple) and all(v is None for i, v in enumerate(y) if i != at):
            self.form = _Among(type(y), len(y), at)
        if self.form is not None:
            module = self.at.module
            self.held, self.own = "forward" in module.__dict__, module.forward
            module.forward = self

    def fits(self, args: tuple, kwargs: dict) -> bool:
        """Whether it can be left out of this call."""
        if self.form is None or torch.compiler.is_compiling() or self.at.module.__dict__.get("forward") is not self:
            return False
        if self.at.name in self.current.thread.run.shown:
            return False
        caches = [v for v in pytree.tree_leaves((args, kwargs)) if hasattr(v, "get_seq_length")]
        return kwargs.get("cache") is None and not any(self.counts(c) for c in caches)

    def counts(self, cache: Any) -> bool:
        """Whether a cache is asked for its tokens by this block's part: the first of its kind, or not known."""
        layers = getattr(getattr(cache, "self_attention_cache", cache), "layers", None) or []
        found = (getattr(m, "layer_idx", None) for m in self.at.module.modules())
        index = next((i for i in found if isinstance(i, int)), None)
        if index is None or index >= len(layers):
            return True
        kinds = [type(layer) for layer in layers]
        return kinds.index(kinds[index]) == index

    def copied(self, module: nn.Module) -> None:
        """Before a call: a shallow copy of the block has this forward too, and is to run its own."""
        if module is not self.at.module and module.__dict__.get("forward") is self:
            self.current.thread.copied = module

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            return self.own(*args, **kwargs)
        thread = self.current.thread
        skip, other = thread.given_to.get(self.at.name), thread.copied
        if isinstance(skip, Skip) and not skip.called and self.form is not None:
            thread.copied = None
            return self.form(skip.x)
        if other is None:
            return self.own(*args, **kwargs)
        thread.copied = None
        return type(other).forward(other, *args, **kwargs)

    def remove(self) -> None:
        self.closed, self.form, module = True, None, self.at.module
        if module.__dict__.get("forward") is self:
            if self.held:
                module.forward = self.own
            else:
                del module.forward


def _itself(x: Any) -> Any:
    return x


class _Among:
    """States at a place of a tuple of nothing else."""

    def __init__(self, kind: type, length: int, at: int):
        self.kind, self.length, self.at = kind, length, at

    def __call__(self, x: Any) -> Any:
        parts = [x if i == self.at else None for i in range(self.length)]
        return self.kind(*parts) if hasattr(self.kind, "_fields") else self.kind(parts)
