"""What there is once an attention's answer is added to what its block was given: seen in passes, not by names."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..core import CommonweightError, Site

if TYPE_CHECKING:
    from .hooked import HookedModel


class Streams:
    """Within it, of each block with an attention and norms among the sites, the stream of every pass goes to `see`.

    A stream is named by the norm that is given it, of models whose norms stand behind what is added; where the norms
    stand before, "attention<norm" with the norm that is given what the block is.
    """

    def __init__(self, base: HookedModel, sites: Sequence[Site], see: Callable[[str, Tensor], None]):
        self.base, self.see = base, see
        self.parts: dict[str, tuple[str, list[str]]] = {}  # block -> its first attention, its norms
        for block in (s.name for s in base.every if s.kind == "block"):
            inside = [s for s in sites if s.name.startswith(f"{block}.")]
            first = next((s.name for s in inside if s.kind == "attention"), None)
            norms = [s.name for s in inside if s.kind == "norm"]
            if first is not None and norms:
                self.parts[block] = first, norms
        if not self.parts:
            raise CommonweightError("no block has both an attention and a norm among the sites; choose others")
        self.given: dict[str, Tensor] = {}
        self.made: dict[str, Tensor] = {}
        self.handles: list[Any] = []

    def __enter__(self) -> Streams:
        at = self.base.modules
        for block, (attention, norms) in self.parts.items():
            m = at[block].module
            self.handles.append(m.register_forward_pre_hook(partial(self._came, block), with_kwargs=True))
            for n in norms:
                self.handles.append(at[n].module.register_forward_pre_hook(partial(self._came, n), with_kwargs=True))
            self.handles.append(at[attention].module.register_forward_hook(partial(self._gave, attention)))
            self.handles.append(m.register_forward_hook(partial(self._told, block), always_call=False))
        return self

    def __exit__(self, *_: Any) -> None:
        for h in self.handles:
            h.remove()

    def _came(self, name: str, module: nn.Module, args: tuple, kwargs: Mapping[str, Any]) -> None:
        self.given[name] = args[0] if args else next(v for v in kwargs.values() if isinstance(v, Tensor))

    def _gave(self, name: str, module: nn.Module, args: Any, y: Any) -> None:
        self.made[name] = y if isinstance(y, Tensor) else y[0]

    def _told(self, block: str, module: nn.Module, args: Any, y: Any) -> None:
        attention, norms = self.parts[block]
        x = self.given[block]
        z = x + self.made[attention]
        behind = [n for n in norms if n in self.given and _same(self.given[n], z)]
        before = [n for n in norms if n in self.given and _same(self.given[n], x)]
        if not behind:
            mine = ", ".join(n.removeprefix(f"{block}.") for n in norms)
            raise CommonweightError(
                f"{block}: none of its norms ({mine}) is given the sum of what the block and what its attention give, "
                "so that nothing can be changed there; take place='outputs'"
            )
        self.see(f"{attention}<{before[0]}" if before else behind[0], z)
        for n in (block, *norms):
            self.given.pop(n, None)


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a.float(), b.float(), rtol=1e-2, atol=1e-3)
