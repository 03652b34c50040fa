"""Weights that a mixture's modules compute with by themselves: stacked experts, routers that are no linear layers.

There is no layer to hook for an expert: one module holds all of them in a tensor of three dimensions and chooses by
index. The module's own forward is run a second time, with the changed weights in their place: slower and right.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..core import CommonweightError, Site
from .apart import Unfit
from .current import Current
from .names import named
from .route import Route
from .sites import Physical, numbers
from .tenant import Entry, Tenant
from .weights import dense


class Stacked(Physical):
    """One parameter of a module: weight as (E out, inp), expert after expert, or a router's (out, inp).

    A parameter of three dimensions is (E, out, inp); where the module says ``is_transposed``, (E, inp, out).
    """

    def __init__(self, name: str, module: nn.Module, slot: str):
        shape = module._parameters[slot].shape  # type: ignore[union-attr]
        turned = len(shape) == 3 and bool(getattr(module, "is_transposed", False))
        super().__init__(name, module, "linear", False, slot, None)
        self.turned = turned
        out, inp = (shape[-1], shape[-2]) if turned else (shape[-2], shape[-1])
        self.count, self.out, self.inp = (shape[0] if len(shape) == 3 else 1), out, inp

    @property
    def parameter(self) -> Tensor:
        return dense(self.module, self.slot, self.name)

    @property
    def key(self) -> str:
        return f"{self.name}.weight" if self.slot == "weight" else self.name

    @property
    def weight(self) -> Tensor:
        w = self.parameter
        w = w.transpose(1, 2) if self.turned else w
        return w.reshape(self.count * self.out, self.inp)

    def steady(self, places: Tensor) -> Tensor:
        return numbers(self.weight, places)

    def shaped(self, weight: Tensor) -> Tensor:
        """A weight (E out, inp) as the module keeps it."""
        w = weight.reshape(self.count, self.out, self.inp)
        w = w.transpose(1, 2) if self.turned else w
        return w.reshape(self.parameter.shape).to(self.parameter.dtype)

    def rows(self, rows: tuple[int, int] | None) -> Physical:
        return self if rows is None else _Expert(self, rows)

    def sites(self) -> list[Site]:
        if self.slot == "weight":
            return [Site(self.name, self.out, self.inp, "linear", "", False)]
        return [
            Site(f"{self.name}[{e}]", self.out, self.inp, "linear", "", False, (e * self.out, (e + 1) * self.out))
            for e in range(self.count)
        ]

    def changed(self, entries: list[Entry]) -> Tensor:
        """The parameter as a tenant has it, in the module's layout and dtype. Cost: a copy of it in float32."""
        base, parts, at = self.weight.float(), [], 0
        by_rows: dict[tuple[int, int], list[Entry]] = {}
        for entry in entries:
            by_rows.setdefault(entry.rows or (0, len(base)), []).append(entry)
        for (start, end), mine in sorted(by_rows.items(), key=lambda item: item[0]):
            w = base[start:end]
            for entry in mine:
                if getattr(entry.bind, "weight", None) is None:
                    raise CommonweightError(
                        f"{self.name}: {type(entry.bind).__name__} is no change of a weight, which experts and routers "
                        "want; take a method that can be merged, such as lora"
                    )
                w = entry.bind.weight(w, **entry.slots(None))
            parts += [base[at:start], w]
            at = end
        return self.shaped(torch.cat([*parts, base[at:]]))


class _Expert(Physical):
    """One expert, by its rows in the weight of all. Cost: a view."""

    def __init__(self, whole: Stacked, rows: tuple[int, int]):
        super().__init__(whole.name, whole.module, whole.kind, False, whole.slot, None)
        self.whole, self.at = whole, rows[0] // whole.out

    @property
    def weight(self) -> Tensor:
        w = self.whole.parameter[self.at]
        return w.T if self.whole.turned else w

    def steady(self, places: Tensor) -> Tensor:
        return numbers(self.weight, places)


class ExpertsHook:
    """After one module's forward. Cost: under a route that changes it, the forward once more for every reader."""

    def __init__(self, module: nn.Module, parts: list[Stacked], current: Current):
        self.module, self.parts, self.current = module, parts, current

    def install(self) -> RemovableHandle:
        return self.module.register_forward_hook(self, with_kwargs=True)

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict, y: Any) -> Any:
        route = self.current.route
        if route is None:
            return None
        if route.single is not None:
            return self.run(route.single, args, kwargs) if self.reads(route.single) else None
        if not any(self.reads(t) for t, _ in route.groups):
            return None
        return self.mixed(route, args, kwargs, y)

    def reads(self, tenant: Tenant | None) -> bool:
        return tenant is not None and any(p.name in tenant.table for p in self.parts)

    def run(self, tenant: Tenant, args: tuple, kwargs: dict) -> Any:
        """The module's own forward with the tenant's weights, hooks left aside."""
        new = {p.slot: p.changed(tenant.table[p.name]) for p in self.parts if p.name in tenant.table}
        bare = object.__new__(type(self.module))
        bare.__dict__ = {**self.module.__dict__, "_forward_hooks": {}, "_forward_pre_hooks": {}}
        bare._parameters = {**self.module._parameters, **new}  # type: ignore[dict-item]
        return type(self.module).forward(bare, *args, **kwargs)

    def mixed(self, route: Route, args: tuple, kwargs: dict, y: Any) -> Any:
        """Reader by reader, on the tokens of its rows: the module is given all in one list, in the batch's order."""
        x = args[0] if args else next((v for v in kwargs.values() if isinstance(v, Tensor)), None)
        if not isinstance(x, Tensor) or x.dim() != 2 or not isinstance(y, Tensor) or route.fold(x) is None:
            raise Unfit(f"{self.parts[0].name}: its tokens are not those of the batch in their order")
        tokens, out = len(x) // route.length, y.clone()
        for tenant, places in route.groups:
            if tenant is None or not self.reads(tenant):
                continue
            first = torch.as_tensor(places, device=x.device)[:, None] * tokens
            where = (first + torch.arange(tokens, device=x.device)).flatten()

            def cut(v: Any, where: Tensor = where) -> Any:
                return v[where] if isinstance(v, Tensor) and v.dim() and len(v) == len(x) else v

            part = self.run(tenant, tuple(map(cut, args)), {k: cut(v) for k, v in kwargs.items()})
            out = out.index_copy(0, where, part.to(out.dtype))
        return out


def stacked(model: nn.Module, names: Mapping[str, Any]) -> Iterator[Stacked]:
    """Experts that lie in one tensor, and routers. names: the modules that are sites already."""
    for name, module in named(model):
        if name in names:
            continue
        own = module._parameters
        if "expert" in name.rpartition(".")[2].lower():
            yield from (Stacked(f"{name}.{s}", module, s) for s, p in own.items() if p is not None and p.dim() == 3)
        elif (
            re.search(r"Router|Gate$", type(module).__name__) and (w := own.get("weight")) is not None and w.dim() == 2
        ):
            yield Stacked(name, module, "weight")


def hooks(modules: Mapping[str, Physical], current: Current) -> list[ExpertsHook]:
    """One for each module that holds some of them."""
    by_module: dict[int, list[Stacked]] = {}
    for at in modules.values():
        if isinstance(at, Stacked):
            by_module.setdefault(id(at.module), []).append(at)
    return [ExpertsHook(parts[0].module, parts, current) for parts in by_module.values()]
