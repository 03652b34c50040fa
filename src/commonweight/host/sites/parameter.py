"""Parameters that a module computes with by itself: A and D of state-space models, gains of layers, tables of places.

They are read through doors: the module gets the tenant's numbers whenever it asks for its own.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from torch import Tensor, nn

from ...core import Site
from ..packs import is_experts, named_so, slots
from ..weights import dense, plain
from .found import Found, Whole
from .physical import Physical, numbers, plain_class


class Parameter(Physical):
    """weight: (out, inp), where inp is the last dimension of a tensor of two or more, and 1 of a vector."""

    forms = "none"

    def __init__(self, name: str, module: nn.Module, slot: str):
        super().__init__(name, module, "parameter", False, slot, None)

    @property
    def key(self) -> str:
        return self.name

    @property
    def weight(self) -> Tensor:
        return self.laid(dense(self.module, self.slot, self.name))  # torch.compile traces no property of a super()

    def laid(self, weight: Tensor) -> Tensor:
        return weight.reshape(-1, 1 if weight.dim() == 1 else weight.shape[-1])

    def steady(self, places: Tensor) -> Tensor:
        return numbers(self.weight, places)

    def native(self, weight: Tensor) -> Tensor:
        return weight.reshape(self.module._parameters[self.slot].shape)  # type: ignore[union-attr]


def find(name: str, module: nn.Module, whole: Whole) -> list[Found]:
    """Those of a module that is no site of another kind; of experts and routers what is no weight or bias of theirs."""
    theirs = _theirs(name, module)
    out: list[Found] = []
    for slot, p in module._parameters.items():
        there = p is not None and (plain(p) or (p.device.type == "meta" and p.is_floating_point()))  # offloaded
        if p is None or not there or p.dim() == 0 or p.numel() == 0 or (theirs and theirs(slot, p)):
            continue
        at = Parameter(f"{name}.{slot}" if name else slot, module, slot)
        rows, columns = at.laid(p).shape
        out.append(Found(at, Site(at.name, rows, columns, "parameter", "", False), whole.inside(at.name)))
    return out


def _theirs(name: str, module: nn.Module) -> Callable[[str, Tensor], bool] | None:
    """Which parameters are sites of `experts.stacked`, or belong to those."""
    if named_so(module, "DbrxExpertGLU"):
        return lambda slot, p: True
    if is_experts(name, module):
        return lambda slot, p: p.dim() > 1 or slot.startswith(tuple(f"{s}_" for s in slots(module)))
    if re.search(r"Router|Gate$", plain_class(module).__name__):
        return lambda slot, p: p.dim() > 1 or slot == "bias"
    return None
