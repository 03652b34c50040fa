"""Prompts in front of the rows of a causal decoder, as keys and values in front of each of its attentions.

What a prompt becomes does not depend on what follows it. So it runs through the decoder once a tenant, by itself, and
the keys and values that it has at each layer join the rows' own, as a prefix does (`ahead`). Nothing gets longer.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..core import CommonweightError
from .current import Current, Pass
from .route import Route
from .sites import Front
from .tenant import Tenant

State = dict[str, tuple[Tensor, Tensor]]  # prefix site -> keys and values (heads, m, d)


class FrontHook:
    """Before the decoder's forward: the prompts of the route's tenants run. Without gradients a prompt runs once while
    the route is open and no pool of its is written; else in each pass."""

    def __init__(self, at: Front, current: Current):
        self.at, self.current = at, current

    def install(self) -> list[Any]:
        return [self.at.module.register_forward_pre_hook(self)]

    def __call__(self, module: nn.Module, args: tuple) -> None:
        route = self.current.route
        if route is not None and self.current.thread.recording is None and route.touches(self.at.name):
            self.prepare(route)

    def prepare(self, route: Route) -> None:
        if torch.compiler.is_compiling():
            raise CommonweightError(
                f"{self.at.name}: a prompt runs before the pass that is compiled; call the model without torch.compile"
            )
        tenants = [route.single] if route.single is not None else [t for t, _ in route.groups]
        for tenant in tenants:
            if tenant is None or self.at.name not in tenant.table:
                continue
            written = self.written(tenant)
            known = route.kept.get(("front", tenant.number))
            if known is None or written is None or known[0] != written:
                route.kept["front", tenant.number] = written, self.states(tenant)

    def written(self, tenant: Tenant) -> list[tuple[int, int]] | None:
        """What tells that no pool was written since; None where that cannot be known, or gradients are recorded."""
        if torch.is_grad_enabled():
            return None
        try:
            return [(p._version, p.data_ptr()) for p in tenant.pools.values()]
        except RuntimeError:  # pools made in inference mode do not count their writes
            return None

    def states(self, tenant: Tenant) -> State:
        """The keys and values of a tenant's prompt at each layer. Cost: a pass of m tokens."""
        module, thread = self.at.module, self.current.thread
        table = next(m for m in module.modules() if isinstance(m, nn.Embedding))
        dtype = table.weight.dtype if table.weight.is_floating_point() else torch.float32
        tokens = torch.cat([e.bind.front(**e.slots(dtype)) for e in tenant.table[self.at.name]]).to(dtype)
        thread.recording = {}
        try:
            with thread.aside(Pass()), self.current.within(Route(single=tenant)), kept_whole(module):
                module.forward(inputs_embeds=tokens[None].to(table.weight.device), use_cache=False)
            return thread.recording
        finally:
            thread.recording = None


@contextmanager
def kept_whole(module: nn.Module) -> Iterator[None]:
    """Within it no layer is a checkpoint, whose recomputation would find no prompt to run."""
    on = [m for m in module.modules() if getattr(m, "gradient_checkpointing", False)]
    for m in on:
        m.gradient_checkpointing = False  # type: ignore[assignment]
    try:
        yield
    finally:
        for m in on:
            m.gradient_checkpointing = True  # type: ignore[assignment]
