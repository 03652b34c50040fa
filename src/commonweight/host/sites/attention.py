"""Attention of torch, whose projections are parameters of its own, which are no modules."""

from __future__ import annotations

from torch import nn

from ...core import Site
from .found import Found, Whole
from .physical import Physical
from .roles import role


def find(name: str, module: nn.Module, whole: Whole) -> list[Found]:
    out: list[Found] = []
    if not isinstance(module, nn.MultiheadAttention):
        return out
    for slot, bias in (
        ("in_proj_weight", "in_proj_bias"), ("q_proj_weight", None), ("k_proj_weight", None), ("v_proj_weight", None)
    ):  # fmt: skip
        w = module._parameters.get(slot)
        if w is None:
            continue
        label = f"{name}.{slot.removesuffix('_weight')}" if name else slot.removesuffix("_weight")
        at = Physical(label, module, "linear", False, slot, bias)
        has_bias = bias is not None and module._parameters.get(bias) is not None
        site = Site(label, w.shape[0], w.shape[1], "linear", role(label), has_bias)
        out.append(Found(at, site, whole.inside(name)))
    return out
