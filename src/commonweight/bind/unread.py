"""Where a model has set the input of padding to zero, there is no token to read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core import Base


@dataclass(frozen=True)
class Unread:
    """`bind`, which gives nothing of an input of zeros: the layer's own answer, its bias, stays. Everything else is the
    bind's. Cost: one look at x and one at y beside it."""

    bind: Any

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "bind":
            raise AttributeError(name)
        return getattr(self.bind, name)

    @property
    def output(self) -> Callable[..., Tensor] | None:
        return self._of("output")

    @property
    def grouped(self) -> Callable[..., Tensor] | None:
        return self._of("grouped")

    @property
    def trained(self) -> Callable[..., Tensor] | None:
        return self._of("trained")

    def _of(self, form: str) -> Callable[..., Tensor] | None:
        run = getattr(self.bind, form, None)
        if run is None:
            return None

        def read(x: Tensor, y: Tensor, base: Base, *more: Any, **slots: Tensor) -> Tensor:
            own = base.bias
            out = run(x, y, base, *more, **slots)
            return torch.where((x == 0).all(-1, keepdim=True), out.new_zeros(()) if own is None else own.to(out), out)

        return read
