"""What stands before the parameters of one module, for whoever reads them past its forward; see `doors`."""

from __future__ import annotations

import threading
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..core import CommonweightError
from .apart import Unfit
from .borrowed import Borrowed, Seen
from .change import changed
from .foremost import foremost
from .hooks import SiteHook
from .tenant import Tenant
from .weights import plain, stored

_DOOR = "_commonweight_door"


class Door:
    """Before the parameters of one module. ways: attribute -> (the site's hook, whether it is the weight).

    ran, read, used: what the passes have shown: that the module was called, that the attribute was asked for from
    outside, and that somebody computed with it. kept: for good.
    """

    def __init__(self, module: nn.Module, fed: bool = False):
        self.module, self.fed, self.kept = module, fed, fed
        self.ways: dict[str, tuple[SiteHook, bool]] = {}
        self.ran = self.read = self.used = False
        self.known = False  # whether some pass has run or read it
        self.traced = False  # whether torch.compile traces the module's own forward
        self.running: dict[int, int] = {}  # calls of the module that a thread is within
        self.handles: list[RemovableHandle] = []

    def open(self) -> None:
        slots = tuple(s for s in self.ways if self.module._parameters.get(s) is not None)
        self.handles = [
            foremost(self.module, self.enter),
            self.module.register_forward_hook(self.leave, always_call=True),
        ]
        self.module.__dict__[_DOOR] = self
        if slots:
            self.module.__class__ = with_door(type(self.module), slots)

    def close(self) -> None:
        self.module.__dict__.pop(_DOOR, None)  # first: a thread that calls the module now is not seen to enter
        for h in self.handles:
            h.remove()
        # a class that another library made of it meanwhile, as parametrisations do, stays: without a door it is plain
        self.module.__class__ = vars(type(self.module)).get("commonweight_plain", type(self.module))

    def again(self) -> None:
        self.ran = self.read = self.used = False
        self.running.clear()  # it may have been closed while another thread was within a call of the module
        self.open()

    def enter(self, module: nn.Module, args: Any) -> None:
        if torch.compiler.is_compiling():
            self.traced = True
            return
        me = threading.get_ident()
        self.running[me] = self.running.get(me, 0) + 1

    def leave(self, module: nn.Module, args: Any, y: Any) -> None:
        if torch.compiler.is_compiling():
            self.traced = False
            return
        me = threading.get_ident()
        within = self.running.get(me, 0) - 1
        if within > 0:
            self.running[me] = within
        else:
            self.running.pop(me, None)
        if not self.ran and any(h.current.route is not None for h, _ in self.ways.values()):
            self.ran = True

    def get(self, slot: str, value: Any) -> Any:
        """What is read from outside; the module's own forward, and whoever reads without a route, gets the base's."""
        hook, _ = self.ways[slot]
        route = hook.current.route
        if route is None or not plain(value):  # a shard, or what is put away: only who keeps house asks for it now
            return value
        if torch.compiler.is_compiling():
            return value if self.traced and not self.fed else self.traced_as(slot, route, value)
        if threading.get_ident() in self.running and not self.fed:
            return value
        self.read = True
        if route.single is not None:
            entries = route.single.table.get(hook.at.name)
            if not entries:
                return value if self.kept else Seen.of(value, self)
            try:
                found = self.changed(slot, route.single)
            except CommonweightError:  # no change of a weight; a linear product can be done all the same
                return Borrowed.of(value, self, slot)
            return found if self.kept or found is value else Seen.of(found, self)
        if not any(self.moves(slot, t) for t, _ in route.groups):
            return value if self.kept else Seen.of(value, self)
        if self.fed and hook.at.kind != "parameter":
            raise self.refused(slot, "each row of a mixed batch has another one")
        return Borrowed.of(value, self, slot)

    def traced_as(self, slot: str, route: Any, value: Tensor) -> Tensor:
        """What is read from outside while torch.compile traces: nobody can look there what it is read for."""
        if route.single is not None:
            return self.changed(slot, route.single)
        if any(self.moves(slot, t) for t, _ in route.groups):
            raise self.refused(
                slot,
                "torch.compile traces it; run the model once under the route, in the same mode (train or eval), before "
                "it is compiled",
            )
        return value

    def moves(self, slot: str, tenant: Tenant | None) -> bool:
        """Whether a tenant has another parameter there than the base."""
        hook, weight = self.ways[slot]
        entries = [] if tenant is None else tenant.table.get(hook.at.name, [])
        return bool(entries) and (weight or any(getattr(e.bind, "bias", None) is not None for e in entries))

    def changed(self, slot: str, tenant: Tenant | None) -> Tensor:
        """The parameter as one tenant has it, in the layout and dtype of the base's."""
        value, (hook, weight) = stored(self.module, slot), self.ways[slot]
        if tenant is None or not self.moves(slot, tenant):
            return value
        try:
            w, b = changed(hook.at, tenant.table[hook.at.name])
        except CommonweightError as e:
            raise self.refused(slot, f"tenant {tenant.name!r} ({tenant.method.name}) has no changed weight") from e
        if not weight:
            return value if b is None else b.to(value)
        return hook.at.native(w).to(device=value.device, dtype=hook.at.weight.dtype)

    def linear(self, x: Tensor, slot: str, bias: Tensor | None) -> Tensor:
        """F.linear(x, weight, bias) by the site's own hook, which sees what the module would give. A bias that is not
        the module's is put in its place after it, as a changed weight would have it."""
        hook, _ = self.ways[slot]
        if hook.at.kind != "linear":
            raise self.refused(slot, f"{hook.at.kind} weights are not the rows of a linear layer")
        own = hook.at.bias
        mine = isinstance(bias, Borrowed) or bias is own
        moved = hook.before(self.module, (x,), {})
        x = x if moved is None else moved[0][0]
        y = nn.functional.linear(x, stored(self.module, slot), own)
        after = hook(self.module, (x,), {}, y)
        y = y if after is None else after
        if not mine and own is not None:
            y = y - own
        return y if mine or bias is None else y + bias

    def keeps_bias(self, slot: str) -> bool:
        """Whether this is the weight of a linear layer, (out, inp), of which no reader moves the bias."""
        hook, weight = self.ways[slot]
        route = hook.current.route
        if route is None or not weight or hook.at.kind != "linear" or hook.at.transposed:
            return False
        readers = [route.single] if route.single is not None else [t for t, _ in route.groups]
        entries = [e for t in readers if t is not None for e in t.table.get(hook.at.name, [])]
        return not any(getattr(e.bind, "bias", None) is not None for e in entries)

    def by_row(self, x: Tensor, slot: str) -> Tensor | None:
        """Heads of tokens in one list, (B T heads, d), by the batch's rows, (B, T heads, d), where a parameter is read
        beside them; None where that is not what x is. Whether they stand row by row is found out in `groups`."""
        hook, _ = self.ways[slot]
        route = hook.current.route
        if route is None or route.shape is not None or x.dim() != 2 or hook.at.kind != "parameter":
            return None
        places = route.length * route.tokens
        listed = places and x.shape[0] != route.length and x.shape[0] % places == 0
        return x.unflatten(0, (route.length, -1)) if listed else None

    def groups(self, x: Tensor, slot: str) -> list[tuple[Any, list[int]]] | None:
        """Who reads which rows of x, the batch's in their order; None where they are tokens, or no batch's.

        Raises: Unfit where x is no input of this site's kind.
        """
        hook, _ = self.ways[slot]
        route = hook.current.route
        if (
            route is None
            or x.dim() < 2
            or x.shape[0] != route.length
            or hook.at.kind not in ("linear", "conv", "parameter")
        ):
            return None
        hook.layout(route, hook.at.seen(x))
        return route.groups

    def alone(self) -> Tenant | None:
        """The tenant that all of a batch reads; None where several do."""
        route = next(iter(self.ways.values()))[0].current.route
        return None if route is None else route.single

    def refused(self, slot: str, why: str) -> Unfit:
        name = self.ways[slot][0].at.name
        todo = f"make the tenant without this site, as with sites='...|!{name}'"
        todo = todo if self.alone() is not None else f"route one tenant at a time, or {todo}"
        return Unfit(f"{name}: the model reads its {slot} past the module, and {why}; {todo}", name)


@cache
def with_door(plain: type, slots: tuple[str, ...]) -> type:
    """The class of a module whose parameters are read through its door."""

    def way(slot: str) -> property:
        def get(self: Any) -> Any:
            for held in (self._parameters, self.__dict__, self._buffers):
                if slot in held:
                    door = self.__dict__.get(_DOOR)
                    return held[slot] if door is None else door.get(slot, held[slot])
            raise AttributeError(f"{plain.__name__} has no {slot}")

        def put(self: Any, value: Any) -> None:
            self.__dict__[slot] = value

        return property(get, put)

    def reduce(self: Any, protocol: Any) -> tuple:
        return remade, (plain, slots), self.__dict__

    kept = {"__module__": plain.__module__, "__qualname__": plain.__qualname__, "__doc__": plain.__doc__}
    ways = {s: way(s) for s in slots}
    return type(plain.__name__, (plain,), {**kept, **ways, "commonweight_plain": plain, "__reduce_ex__": reduce})


def remade(plain: type, slots: tuple[str, ...]) -> Any:
    """An empty module of that class, for copies and pickles."""
    return object.__new__(with_door(plain, slots))
