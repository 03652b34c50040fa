"""What a part of a block is given, where the module that calls its first layer turns rows and tokens about."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from .current import Current
from .sites import Block


class Framed:
    """Before that module: what it is given waits for the part's first layer."""

    def __init__(self, at: Block, current: Current):
        self.at, self.current = at, current

    def install(self) -> list[Any]:
        return [] if self.at.frame is None else [self.at.frame.register_forward_pre_hook(self, with_kwargs=True)]

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        route = self.current.route
        if route is not None and route.touches(self.at.name):
            given = next((v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)), None)
            self.current.thread.given_to[self.at.name] = given


def rows_first(given: Any, x: Tensor) -> Tensor:
    """x, or what was given where x is a view of it with tokens before rows: Longformer's attention asks so."""
    if not isinstance(given, Tensor) or given.dim() < 3 or given.data_ptr() != x.data_ptr():
        return x
    turned = given.transpose(0, 1)
    return given if turned.shape == x.shape and turned.stride() == x.stride() else x
