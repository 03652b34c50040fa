"""The states of a trunk, kept while the model runs, for a network beside it."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..core import CommonweightError
from .carried import bare
from .current import Current
from .route import Route
from .sites import Trunk
from .tokens_first import Turned, one_stream, straight

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle


class States:
    """Of one trunk: laid into one tensor block after block, without gradients, where a tenant of the route reads them.

    Base only: one attribute read and a comparison for each block. Cost: n + 1 states of n blocks, once.
    turned: to rows first, and back.
    """

    def __init__(self, at: Trunk, current: Current, turned: Turned = straight):
        self.at, self.current, self.turned = at, current, turned

    def install(self) -> list[RemovableHandle]:
        first, *_ = self.at.blocks
        between = enumerate(self.at.blocks[:-1], 1)
        passing = [b.register_forward_hook(partial(self.passed, i), with_kwargs=True) for i, b in between]
        return [first.register_forward_pre_hook(self.started, with_kwargs=True), *passing]

    def started(self, module: nn.Module, args: tuple, kwargs: dict | None = None) -> None:
        """The first block begins. In a backward pass, which recomputes, the states are those of the forward pass."""
        route, at = self.current.route, self.at
        if route is None or not route.touches(at.name) or recomputing():
            return
        x = next((v for v in (*args, *(kwargs or {}).values()) if isinstance(v, Tensor)), None)
        if x is None:
            raise CommonweightError(
                f"{at.name}: its first block was called without a tensor; a tenant cannot read here"
            )
        one_stream(at.name, module, args, kwargs or {})
        x = self.turned(bare(x))
        self.current.thread.run.states[at.name] = at.begun(x, self.current.there(at.name, x))

    def passed(self, place: int, module: nn.Module, args: tuple, kwargs: Any, *output: Any) -> None:
        """A block has run."""
        states = self.current.thread.run.states.get(self.at.name)
        if states is None or recomputing():
            return
        y = output[0] if output else kwargs
        which = self.at.main(states, y)
        self.at.lay(states, place, self.turned(y if which is None else y[which]))

    def collected(self, route: Route, y: Any) -> Tensor:
        """All of them, y of the last block among them. Raises: CommonweightError with a cache, where a network reads
        whole rows."""
        thread, at = self.current.thread, self.at
        if (states := thread.run.states.get(at.name)) is None:
            raise CommonweightError(f"{at.name}: its last block runs, and its first did not; run the whole model")
        whole_rows(at.name, route, thread.run.past)
        self.passed(len(at.blocks), at.module, (), y)
        if not torch.is_grad_enabled():
            del thread.run.states[at.name]
        return self.turned(states)


def whole_rows(site: str, route: Route, past: bool) -> None:
    """Raises: CommonweightError where a cache holds what came before, and a tenant's network reads whole rows."""
    tenants = [route.single] if route.single is not None else [t for t, _ in route.groups if t is not None]
    reads = [(t, e.bind) for t in tenants for e in t.table.get(site, [])]
    whole = next((t for t, bind in reads if not getattr(bind, "tokenwise", True)), None)
    if past and whole is not None:
        raise CommonweightError(
            f"{site}: the network of tenant {whole.name!r} ({whole.method.name}) reads whole rows, and a cache holds "
            "what came before; generate with use_cache=False"
        )


def recomputing() -> bool:
    return torch._C._current_graph_task_id() != -1
