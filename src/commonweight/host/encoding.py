"""The encoder of an encoder-decoder where it runs by itself, as in `generate`: that is a pass of its own.

It is told its padding and rows as the whole model is, and where a site cannot find the rows of a mixed batch it runs
reader by reader. Without this its sites would know of the pass before it, or of none.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .current import Current
from .entrances import Forward
from .names import paired
from .route import size
from .states import recomputing
from .told import told_rows


class Encoding(Forward):
    """Before an encoder's forward. Within a pass of the whole model, and of the plain base: a few comparisons."""

    @property
    def caches(self) -> bool:
        return False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        current = self.current
        if torch.compiler.is_compiling() or recomputing() or current.replayed or not self.alone():
            return self.own(*args, **kwargs)
        found = size(args, kwargs)
        current.bring(found)
        if (route := current.route) is None:
            return self.own(*args, **kwargs)
        current.thread.begin(self.model, args, kwargs)
        try:
            told_rows(route, self.model, kwargs, found)
            return self.routed(*args, **kwargs)
        finally:
            current.thread.run.end()

    def alone(self) -> bool:
        """Whether no pass of the whole model runs: none, or this one's, which calls it for some of its rows."""
        given = self.current.thread.run.given
        return given is None or given[0] is None or given[0] is self.model


def install(model: nn.Module, current: Current) -> list[Encoding]:
    """At the encoder of an encoder-decoder; none elsewhere."""
    encoder = model.get_encoder() if paired(model) and hasattr(model, "get_encoder") else None  # type: ignore[operator]
    if not isinstance(encoder, nn.Module) or encoder is model:
        return []
    found = Encoding(encoder, current)
    found.install()
    return [found]
