"""Weights that a model reads past their modules, as in ``F.linear(x, self.qkv.weight)``: no hook runs there.

A door stands before a module's parameters: whoever reads them outside of the module's own forward, while a tenant is
routed, gets the tenant's. All sites have one until the first routed pass has shown which modules are called; then only
those keep it whose weights are read past them. Attention of torch reads all of its weights itself and keeps its doors.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..core import WEIGHTLESS
from .door import Door
from .hooks import WATCH, SiteHook
from .sites import Physical
from .weights import stored

_OPENING = threading.Lock()  # whoever opens and shuts doors, of all hosts
Mode = tuple[
    tuple[bool, ...], bool, bool
]  # which modules train; whether gradients are kept; whether rows are one token


class Doors:
    """All doors of a host. Until its first route every module is as it was. After a routed pass the doors of modules
    that were called, and that nobody read past, go; they come back for one pass in every mode of running that is new.
    """

    def __init__(self, model: nn.Module, names: Mapping[str, nn.Module], hooks: Mapping[str, SiteHook]):
        self.model, self.names = model, names
        self.doors: dict[str, Door] = {}
        self.open: dict[str, Door] = {}  # of which it is not known yet whether they are needed
        self.called: set[str] = set()  # parents whose forward ran under a route
        self.modes: set[Mode] = set()
        self.inside: dict[int, int] = {}  # routed passes that a thread is within
        self.readers: dict[int, int] = {}  # how many sites read a weight; of tied ones, one may be all that is called
        self.said = self.first = False
        at_home = {id(m): n for n, m in names.items()}
        fed = {id(m.out_proj) for m in names.values() if isinstance(m, nn.MultiheadAttention)}
        # torch's layer asks for these to decide on its fast path, which it never takes with hooks in it
        called = {id(c) for m in names.values() if isinstance(m, nn.TransformerEncoderLayer) for c in m.children()}
        for hook in hooks.values():
            at = hook.at
            if (weight := at.module._parameters.get(at.slot)) is not None:
                self.readers[id(weight)] = self.readers.get(id(weight), 0) + 1
            if at.kind in WEIGHTLESS or (not by_itself(at) and id(at.module) in called):
                continue
            home = at_home[id(at.module)]
            if home not in self.doors:
                self.doors[home] = Door(at.module, fed=by_itself(at) or id(at.module) in fed)
            self.doors[home].ways[at.slot] = hook, True
            if at.bias_slot is not None and isinstance(stored(at.module, at.bias_slot), Tensor):
                self.doors[home].ways[at.bias_slot] = hook, False
        self.parents = {n: p for n, d in self.doors.items() if not d.kept and (p := around(n, names)) is not None}
        self.around = [m for m in names.values() if m._modules]  # code that may read a weight past its module
        self.marks: list[RemovableHandle] = []
        self.done: list[RemovableHandle] = []  # marks that are not needed any more
        self.handles = [model.register_forward_hook(self.settle, always_call=True)]
        model.__dict__[WATCH] = self.arrive

    def begin(self) -> None:
        """Before the first route, and where that was not set by `Host.route`, before the first pass under one. Not
        while another thread is within a pass."""
        with _OPENING:
            if self.quiet():
                self.opened()

    def quiet(self) -> bool:
        """Whether no other thread is within a routed pass: it would find a door behind it."""
        return not self.inside.keys() - {threading.get_ident()}

    def opened(self) -> None:
        if not self.first:
            self.first = True
            for door in self.doors.values():
                door.open()
            self.watch({n: d for n, d in self.doors.items() if not d.kept})

    def watch(self, doors: Mapping[str, Door]) -> None:
        """Finds out, in the passes that come, which of these are needed."""
        self.open.update(doors)
        self.called.clear()
        if self.open and not self.marks:
            self.marks = [
                self.names[p].register_forward_hook(partial(self.mark, p), always_call=False)
                for p in {*self.parents.values()}
            ]

    def arrive(self, found: tuple[int, int] | None, compiled: bool = False) -> None:
        """Before a pass of the whole model. In a mode that is new all doors stand open once more: a model may read past
        its modules in training alone, without gradients alone, or from the second token on.

        Cost: some 30 ns for each module that holds others. Not while another thread is within a pass; then at the next
        one. A compiled model looks at training alone.
        """
        if self.route() is None:
            return
        done, self.done = self.done, []
        for h in done:
            h.remove()
        flags = tuple([m.training for m in self.around])
        mode = flags, torch.is_grad_enabled(), found is not None and found[1] == 1
        with _OPENING:
            alone = self.quiet()
            if alone and not compiled:
                self.opened()
            if mode not in self.modes and alone and not (compiled and any(flags == m[0] for m in self.modes)):
                if self.modes:
                    shut = {n: d for n, d in self.doors.items() if not d.kept and n not in self.open}
                    for door in shut.values():
                        door.again()
                    self.watch(shut)
                self.modes.add(mode)
            if not compiled:
                me = threading.get_ident()
                self.inside[me] = self.inside.get(me, 0) + 1

    def mark(self, parent: str, module: nn.Module, args: Any, y: Any) -> None:
        if not torch.compiler.is_compiling() and self.route() is not None:
            self.called.add(parent)

    def fed(self, site: str) -> bool:
        """Whether torch's attention computes with this site's weight by itself."""
        found = [h.at for d in self.doors.values() if d.fed for h, _ in d.ways.values()]
        return any(at.name == site and at.kind == "linear" for at in found)

    def past(self, site: str) -> bool:
        """Whether a routed pass has computed with this site's weight past its module; False before the first pass."""
        found = [h.at for d in self.doors.values() if d.used and not d.fed for h, _ in d.ways.values()]
        return any(at.name == site and at.kind in ("linear", "conv", "embedding") for at in found)

    def route(self) -> Any:
        for door in self.doors.values():
            return next(iter(door.ways.values()))[0].current.route

    def settle(self, module: nn.Module, args: Any, y: Any) -> None:
        """After a pass of the whole model."""
        if torch.compiler.is_compiling():
            return
        me = threading.get_ident()
        if me not in self.inside or (route := self.route()) is None:
            return
        with _OPENING:
            self.inside[me] = self.inside.get(me, 0) - 1
            if self.inside[me] <= 0:
                del self.inside[me]
            passed_over = self.settled() if self.open else []
        self.tell([n for n in passed_over if route.touches(n)])

    def settled(self) -> list[str]:
        """What the pass has shown of the open doors; the sites that it should have run, and did not."""
        passed_over = []
        for name, door in list(self.open.items()):
            if door.used or (door.read and not door.ran):
                door.kept = True
            elif door.ran:
                door.close()
            else:
                if not door.known and self.parents.get(name) in self.called:
                    passed_over += [h.at.name for h, weight in door.ways.values() if weight and self.alone(h)]
                continue
            door.known = True
            del self.open[name]
        if not self.open:  # not removed here: after an error torch is going through the hooks of this very module
            self.done, self.marks = self.done + self.marks, []
        return passed_over

    def alone(self, hook: SiteHook) -> bool:
        """Whether no other site reads this one's weight."""
        return self.readers.get(id(hook.at.module._parameters.get(hook.at.slot)), 1) == 1

    def tell(self, names: list[str]) -> None:
        """Once: sites of a routed tenant that were passed over by the module that holds them."""
        if names and not self.said:
            self.said = True
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            warnings.warn(
                f"{', '.join(names[:3])}{more}: neither called nor read in this pass, though the module around was; "
                "the tenant has no effect there. That is right where the model leaves layers out. Where it keeps "
                "copies of weights it is not: make the tenant without these sites",
                stacklevel=2,
            )

    def close(self) -> None:
        for h in (*self.handles, *self.marks, *self.done):
            h.remove()
        for door in self.doors.values():
            door.close()
        self.model.__dict__.pop(WATCH, None)
        self.doors, self.open, self.handles, self.marks, self.done = {}, {}, [], [], []


def by_itself(at: Physical) -> bool:
    """Whether it is a parameter that its module reads by itself, so that no hook sees what is made of it."""
    return at.kind == "parameter" or at.slot != "weight"


def around(name: str, names: Mapping[str, nn.Module]) -> str | None:
    """The nearest module around this one that is called itself, and not through its members."""
    while name:
        name = name.rpartition(".")[0]
        if name in names and not isinstance(names[name], nn.ModuleList | nn.ModuleDict | nn.Sequential):
            return name
    return None
