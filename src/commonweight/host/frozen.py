"""The frozen layers' own products while somebody trains; see `bind.products`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..bind.fused import recorded
from ..bind.products import at_hand, frozen, large
from ..core import CommonweightError
from .weights import plain

if TYPE_CHECKING:
    from .current import Current
    from .sites import Physical


class Frozen:
    """In the place of a linear layer's `forward`: another product under a route where a graph is made, and where
    the base says what a row is (`queries`), else its own."""

    def __init__(self, module: nn.Linear, current: Current):
        self.module, self.current, self.closed = module, current, False

    def __call__(self, input: Tensor) -> Tensor:
        module, thread = self.module, self.current.thread
        if thread.copied is not None:
            module, thread.copied = thread.copied, None
        own = module._parameters
        w, b = own.get("weight"), own.get("bias")
        if (
            (thread.asking or (torch.is_grad_enabled() and self.current.route is not None and recorded(input)))
            and not torch.compiler.is_compiling()
            and not self.closed
            and w is not None
            and plain(w)
            and type(input) is Tensor
            and large(input, w)
            and not w.requires_grad
            and (b is None or (plain(b) and not b.requires_grad and b.shape == w.shape[:1] and b.is_contiguous()))
        ):
            return frozen(input, w, b)
        return type(module).forward(module, input)

    def remove(self) -> None:
        self.closed = True
        if self.module.__dict__.get("forward") is self:
            del self.module.forward


def install(sites: Iterable[Physical], current: Current) -> list[Frozen]:
    """Every plain linear layer of a float32 base on a CPU that has such products. `remove` gives the layer its own."""
    if not at_hand():
        return []
    made = []
    for at in sites:
        module, w = at.module, at.module._parameters.get("weight")
        if type(module) is nn.Linear and own_forward(module) and w is not None and plain(w):
            if w.dtype is torch.float32 and w.device.type == "cpu":
                module.forward = Frozen(module, current)  # type: ignore[method-assign]
                made.append(module.__dict__["forward"])
    return made


def copied(at: Physical, module: nn.Module, current: Current) -> None:
    """Before a forward that is not the layer's own: a shallow copy of it has its hooks and what stands for its forward.
    With the layer's parameters it is the layer. With others its product is its own, and no tenant knows them.

    Raises: CommonweightError for such a copy where a tenant reads at the layer.
    """
    if type(module.__dict__.get("forward")) is not Frozen or module._parameters is at.module._parameters:
        return
    if (route := current.route) is not None and route.touches(at.name):
        raise CommonweightError(
            f"{at.name}: a shallow copy of this layer (copy.copy) with other parameters is run under a tenant that "
            "changes the layer; run it outside of the route, or copy the layer with copy.deepcopy"
        )
    current.thread.copied = module


def together(module: nn.Module, args: tuple, kwargs: dict | None) -> Any:
    """What a forward pre-hook gives back for a slice of tokens, as `generate` asks the head for the last ones of its
    rows: the same, laid together; None where the layer is called as it is. On a CPU torch 2.13 multiplies a slice with
    a frozen weight row by row, with AVX512-BF16 hundreds of times slower than all rows at once. Cost: a copy of it.
    """
    x = args[0] if args else None
    if type(x) is not Tensor or x.dim() < 3 or x.is_contiguous() or x.device.type != "cpu":
        return None
    if (w := module._parameters.get("weight")) is None or w.requires_grad:
        return None
    given = (x.contiguous(), *args[1:])
    return given if kwargs is None else (given, kwargs)


def own_forward(module: nn.Module) -> bool:
    """Whether a layer's forward is still its class's, or the one that stands here for it."""
    return type(module.__dict__.get("forward")) in (type(None), Frozen)
