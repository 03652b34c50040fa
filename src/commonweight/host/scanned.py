"""What is added to the states of a state-space layer, where its last projection reads them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..core import CommonweightError
from .carried import bare
from .current import Current
from .hooks import SiteHook
from .sites import State

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle


class StateHook(SiteHook):
    """Before a mixer's last projection, with what two others gave in the same call. States and caches stay the base's.

    In training a kernel may compute the whole mixer at once, from its weights; while a tenant reads there the mixer
    says that it does not train, so that it calls its layers. It has no dropout.
    """

    at: State

    def __init__(self, at: State, current: Current):
        super().__init__(at, current)

    def install(self) -> list[RemovableHandle]:
        at = self.at
        return [
            at.module.register_forward_pre_hook(self.begins),
            at.enters.register_forward_hook(self.entered),
            at.reads.register_forward_hook(self.read),
            at.leaves.register_forward_pre_hook(self.leaving),
            at.module.register_forward_hook(self.ends, always_call=True),
        ]

    @property
    def waiting(self) -> dict[str, Any] | None:
        return self.current.thread.given_to.get(self.at.name)

    def begins(self, module: nn.Module, args: tuple) -> None:
        route, waiting = self.current.route, self.current.thread.given_to
        waiting.pop(self.at.name, None)
        if route is not None and route.touches(self.at.name):
            waiting[self.at.name] = {"training": module.training}
            module.training = False

    def entered(self, module: nn.Module, args: tuple, y: Tensor) -> None:
        if (waiting := self.waiting) is not None:
            waiting["z"] = bare(y)[..., self.at.channels :]

    def read(self, module: nn.Module, args: tuple, y: Tensor) -> None:
        if (waiting := self.waiting) is not None:
            waiting["c"] = bare(y)[..., -self.at.size :]

    def leaving(self, module: nn.Module, args: tuple) -> Any:
        route, waiting = self.current.route, self.waiting
        if waiting is None or route is None:
            return None
        x = bare(args[0])
        given = torch.cat([waiting.pop("z"), waiting.pop("c")], -1)
        waiting["left"] = True
        return (self.after(route, given.to(x.dtype), x), *args[1:])

    def ends(self, module: nn.Module, args: tuple, y: Any) -> None:
        """Raises: CommonweightError where the mixer did not call its layers."""
        waiting = self.current.thread.given_to.pop(self.at.name, None)
        if waiting is None:
            return
        module.training = waiting["training"]
        if y is not None and "left" not in waiting:
            raise CommonweightError(
                f"{self.at.name}: this layer computed with the weights of its projections in place of calling them (a "
                "kernel, or a forward that was replaced), so that nothing can be added to its states; take a method "
                "that changes weights, such as lora"
            )
