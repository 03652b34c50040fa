"""Where a constant can be added to the states of a selective state-space layer, as Mamba and Jamba have it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from ...core import Site
from .found import Found, Whole
from .linear import shape
from .physical import Physical


class State(Physical):
    """Its input, (B, T, d + n), is the gate z of each of the d channels, before its activation, and C, by which the n
    numbers of a state are read; its output is what the last projection is given, (B, T, d), behind the gate.

    enters: gives z behind d others. reads: gives C, as its last n numbers. leaves: the last projection.
    """

    forms = "none"

    def __init__(self, name: str, mixer: nn.Module, ends: Sequence[nn.Module], channels: int, size: int):
        super().__init__(name, mixer, "state", False)
        self.enters, self.reads, self.leaves = ends
        self.channels, self.size = channels, size

    @property
    def flagged(self) -> nn.Module:
        return self.leaves


def find(whole: Whole) -> list[Found]:
    return [found for n, m in whole.names.items() if (found := _state(n, m, whole)) is not None]


def _state(name: str, module: Any, whole: Whole) -> Found | None:
    """A mixer of the first Mamba: A is a matrix (d, n), z is the second half of what `in_proj` gives, C is the end of
    what `x_proj` gives, or what a norm of it gives. Mixers that norm C in their own code (FalconMamba) are left out."""
    a = module._parameters.get("A_log")
    if not isinstance(a, Tensor) or a.dim() != 2:
        return None
    ends = [getattr(module, n, None) for n in ("in_proj", "x_proj", "out_proj")]
    layers = [m for m in ends if isinstance(m, nn.Module)]
    shapes = [s for m in layers if (s := shape(m)) is not None]
    if len(shapes) < 3 or hasattr(module, "rms_eps"):
        return None
    d, n = a.shape
    if shapes[0][0] != 2 * d or shapes[1][0] <= 2 * n or shapes[2][1] != d:
        return None
    if getattr(module, "activation", "silu") != "silu":
        return None
    enters, reads, leaves = layers
    reads = getattr(module, "c_layernorm", reads)
    site = f"{name}.state" if name else "state"
    at = State(site, module, (enters, reads, leaves), d, n)
    return Found(at, Site(site, d, n, "state", "", False), whole.inside(name))
