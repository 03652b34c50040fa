"""Linear layers of a CPU in the layout that oneDNN's products read, for the steps of an engine, or of another runner.

MKL lays each weight anew for every product, and on AMD's processors it does not use AVX512: at 32 rows a layer's
product takes two thirds of the time from a weight that has been laid once. Only those steps read these copies.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from .frozen import own_forward

_SHARE = 4  # of the memory that is free, the copies take one part of so many at most


class Forward:
    """In the place of a layer's `forward`: the packed weight in a step, the layer's own elsewhere.

    stepping: whether this thread runs one; None: always.
    A weight that has been written to, or replaced, since it was packed is packed anew. A copy of the layer, or one
    that was pickled, has a plain one.
    """

    def __init__(self, module: nn.Linear, stepping: Callable[[], bool] | None = None):
        self.module, self.stepping = module, stepping
        self.seen: tuple[int, int] | None = None
        self.packed: Tensor | None = None
        self.before = module.__dict__.get("forward")

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "seen": None, "packed": None}

    def __call__(self, input: Tensor) -> Tensor:
        weight = self.module.weight
        if (self.stepping and not self.stepping()) or input.dtype is not weight.dtype:
            return linear(input, weight, self.module.bias)
        seen = weight.data_ptr(), weight._version
        if self.seen != seen:
            self.packed, self.seen = _packed(weight), seen
        if self.packed is None:
            return linear(input, weight, self.module.bias)
        return torch.ops.mkldnn._linear_pointwise(input, self.packed, self.module.bias, "none", [], "")


def _packed(weight: Tensor) -> Tensor | None:
    """None where this processor has no products for such a weight."""
    try:
        return torch.ops.mkldnn._reorder_linear_weight(weight.detach(), None)
    except RuntimeError:
        return None


def layers(model: nn.Module) -> list[nn.Linear]:
    """Those whose forward is nn.Linear's own, with a dense weight on the CPU."""
    return [
        m for m in model.modules()
        if isinstance(m, nn.Linear) and type(m).forward is nn.Linear.forward and own_forward(m)
        and type(m.weight) is nn.Parameter and m.weight.device.type == "cpu"
        and m.weight.dtype in (torch.float32, torch.bfloat16)
    ]  # fmt: skip


def prepack(model: nn.Module, wanted: bool | None, stepping: Callable[[], bool] | None = None) -> list[nn.Linear]:
    """The layers that have a packed copy from now on. wanted: None: where the copies leave most of the free memory.
    stepping: see `Forward`."""
    if wanted is False or not torch.backends.mkldnn.is_available():
        return []
    found = layers(model)
    if wanted is None and _SHARE * sum(m.weight.nbytes for m in found) > _free():
        return []
    for module in found:
        module.forward = Forward(module, stepping)
    return found


def unpack(found: list[nn.Linear]) -> None:
    """Takes the copies away; the layers are as they were."""
    for module in found:
        if isinstance(placed := module.__dict__.get("forward"), Forward):
            del module.forward
            if placed.before is not None and not getattr(placed.before, "closed", False):
                module.forward = placed.before


def _free() -> int:
    """Bytes; 0 where the system does not say."""
    try:
        with open("/proc/meminfo") as lines:
            return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return 0
