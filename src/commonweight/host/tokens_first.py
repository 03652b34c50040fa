"""Modules that are given tokens before rows, (T, B, d), by their classes: a shape alone does not tell where both agree.

FSMT and XLNet turn their input about before the first layer and back behind the last; attention of Longformer and LED
asks for queries, keys and values so. Whoever reads there sees rows first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from ..core import CommonweightError
from .sites import parameters, plain_class

Turned = Callable[[Tensor], Tensor]

_ALL = {("modeling_fsmt", "EncoderLayer"), ("modeling_fsmt", "DecoderLayer"), ("modeling_xlnet", "XLNetLayer")}
_ASKING = {("modeling_longformer", "LongformerSelfAttention"), ("modeling_led", "LEDEncoderSelfAttention")}


def tokens_first(model: nn.Module) -> set[int]:
    """By their ids."""
    out: set[int] = set()
    for module in model.modules():
        plain = plain_class(module)
        kind = plain.__module__.rpartition(".")[2], plain.__name__
        if kind in _ALL:
            out |= {id(m) for m in module.modules()}
        elif kind in _ASKING:
            out |= {id(m) for m in module.children()}
    return out


def one_stream(site: str, module: nn.Module, args: tuple, kwargs: Mapping[str, Any]) -> None:
    """Raises: CommonweightError where XLNet's layer is given its second stream of states too, which is not followed."""
    names = parameters(module)
    if "output_g" in names and dict(zip(names, args), **kwargs).get("output_g") is not None:
        raise CommonweightError(
            f"{site}: this pass has two streams of states (target_mapping, as generate gives it), and a tenant here "
            "follows one; call the model without target_mapping, or take a method that changes weights, such as lora"
        )


def straight(t: Tensor) -> Tensor:
    return t


def turned(t: Tensor) -> Tensor:
    """(B, T, d) of (T, B, d), and the way back. A copy: FSMT views what its layers give."""
    return t.transpose(0, 1).contiguous() if t.dim() > 2 else t
