"""What stands before the forward of a module with experts, or of a router."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..current import Current
from ..entrances import Entrance
from ..hooks import recomputed
from ..packs import flat, named_so
from ..sites import Physical
from . import forms, whole
from .readers import tenants
from .stacked import Stacked


class Around(Entrance):
    """The forward of gpt-oss' mixture with mxfp4 experts, which hands what its router says to a kernel past the
    forwards of both. Under a route it calls them as modules, as it does where experts lie on several devices."""

    name = "forward"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.current.route is None:
            return self.own(*args, **kwargs)
        experts: Any = self.model.experts
        before = experts.__dict__.get("_is_hooked")
        experts._is_hooked = True
        try:
            return self.own(*args, **kwargs)
        finally:
            if before is None:
                del experts._is_hooked
            else:
                experts._is_hooked = before


class Mixture(Entrance):
    """The forward of one module. Base only: one look at the route. Under a route that changes the module, the forward
    of `forms` runs in place of its own, or `whole` where the class is not known."""

    name = "forward"

    def __init__(self, module: nn.Module, parts: list[Stacked], current: Current):
        super().__init__(module, current)
        self.parts = {p.slot: p for p in parts}
        self.last: Any = None  # who read in the last forward here that was not within a backward pass

    def install(self) -> None:
        self.model.__dict__[self.name] = self.run  # a bound method: torch.compile looks into callable objects

    def remove(self) -> None:
        if getattr(self.model.__dict__.get(self.name), "__self__", None) is self:
            del self.model.__dict__[self.name]
            if self.before is not None:
                self.model.__dict__[self.name] = self.before

    def run(self, *args: Any, **kwargs: Any) -> Any:
        route = self.current.route
        parts = list(self.parts.values())
        if not torch.compiler.is_compiling():
            self.last = recomputed(parts[0].name, self.current, self.last)
        if route is None or not (any(whole.reads(parts, t) for t in tenants(route)) or self.cuts(args)):
            return self.own(*args, **kwargs)
        return self.changed(route, args, kwargs)

    def cuts(self, args: tuple) -> bool:
        """Whether the forward of packed experts would hand no gradients to what lies before it."""
        packs = [p.pack for p in self.parts.values() if p.pack is not None and not p.pack.backward]
        return bool(packs) and torch.is_grad_enabled() and any(isinstance(a, Tensor) and a.requires_grad for a in args)

    @torch.compiler.disable
    def changed(self, route: Any, args: tuple, kwargs: dict) -> Any:
        module, parts = self.model, list(self.parts.values())
        if flat(module):
            return forms.run_mixed(module, self.parts, route, self.current.room, *args, **kwargs)
        if parts[0].kind == "expert" and "down_proj" in self.parts:
            if forms.mixed(module):
                return forms.run_mixed(module, self.parts, route, self.current.room, *args, **kwargs)
            if forms.spread(module):
                return forms.run_spread(module, self.parts, route, self.current.room, *args, **kwargs)
        if route.single is not None:
            return whole.run(self.own, module, parts, route.single, args, kwargs)
        return whole.run_mixed(self.own, module, parts, route, args, kwargs)


def hooks(modules: Mapping[str, Physical], names: Mapping[str, nn.Module], current: Current) -> list[Entrance]:
    """One for each module that holds some of the experts and routers. names: all modules of the model."""
    by_module: dict[int, list[Stacked]] = {}
    for at in modules.values():
        if isinstance(at, Stacked):
            by_module.setdefault(id(at.caller), []).append(at)
    found: list[Entrance] = [Mixture(parts[0].caller, parts, current) for parts in by_module.values()]
    found += [
        Around(m, current) for m in names.values() if named_so(m._modules.get("experts"), "Mxfp4GptOssExperts")
    ]  # fmt: skip
    for f in found:
        f.install()
    return found
