"""What is added to the vectors of tokens by their positions, behind the table that makes them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from ..core import CommonweightError
from .current import Current
from .hooks import SiteHook
from .sites import Positions

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle


class PositionsHook(SiteHook):
    """After the table: a tenant is given the positions of tokens in place of their entries."""

    at: Positions

    def __init__(self, at: Positions, current: Current):
        super().__init__(at, current)

    def install(self) -> list[RemovableHandle]:
        return [
            self.at.module.register_forward_hook(self, with_kwargs=True),
            self.at.stack.register_forward_pre_hook(self.begins, with_kwargs=True),
        ]

    def __call__(self, module: nn.Module, args: tuple, kwargs: Any, *output: Any) -> Any:
        y, kwargs = (output[0], kwargs) if output else (kwargs, {})
        route, run = self.current.route, self.current.thread.run
        if route is None or not route.touches(self.at.name):
            return None
        run.numbered.add(self.at.name)
        return self.after(route, run.positions(self.input(args, kwargs))[..., None], y)

    def begins(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        """Raises: CommonweightError where the model is given vectors that did not come of the table."""
        route, thread = self.current.route, self.current.thread
        if route is None or not route.touches(self.at.name) or self.at.name in thread.run.numbered:
            return
        if kwargs.get("inputs_embeds") is not None:
            raise CommonweightError(
                f"{self.at.name}: the model is given inputs_embeds, which the table of tokens did not make, and a "
                "tenant adds to what the table gives; give input_ids"
            )
