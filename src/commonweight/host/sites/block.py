"""Outputs of the transformer blocks, and where a task's classifier reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import nn

from ...core import Site
from ..names import named, unwrapped
from . import linear
from .found import Found, Whole
from .norm import is_norm
from .physical import Physical


def find(name: str, module: nn.Module, whole: Whole) -> list[Found]:
    if name in whole.blocks and (width := _width(whole.model, module)):
        return [Found(Physical(name, module, "block", False), Site(name, width, width, "block", "", False), True)]
    return []


def find_head(name: str, module: nn.Module, whole: Whole) -> list[Found]:
    if not getattr(module, "is_head_site", False):
        return []
    site = Site(name, 0, module.width, "head", "", False)  # type: ignore[arg-type]
    return [Found(Physical(name, module, "head", False), site, True)]


def blocks(model: nn.Module) -> list[str]:
    """Names of the transformer blocks: the outermost list members that hold two or more linear layers."""
    return blocks_of(dict(named(model)))


def blocks_of(names: Mapping[str, nn.Module], *kinds: Callable[[nn.Module], object]) -> list[str]:
    """kinds: what counts beside linear layers; each gives None for a module that is not of it."""
    linears = [n for n, m in names.items() if any(k(m) is not None for k in (linear.shape, *kinds))]
    found: list[str] = []
    for name, module in names.items():
        if not isinstance(module, nn.ModuleList | nn.Sequential) or any(name.startswith(b + ".") for b in found):
            continue
        start = f"{name}." if name else ""
        for key in module._modules:
            if sum(n.startswith(f"{start}{key}.") for n in linears) >= 2:
                found.append(f"{start}{key}")
    return found


def _width(model: nn.Module, block: nn.Module) -> int:
    """Hidden width of a block's output: the norms inside it, else the configuration's hidden_size."""
    config = getattr(unwrapped(model), "config", None)
    size = getattr(config, "hidden_size", None) or getattr(config, "d_model", None)
    if size:
        return int(size)
    return next((m.weight.shape[0] for m in block.modules() if is_norm(m)), 0)  # type: ignore[union-attr,index,misc]
