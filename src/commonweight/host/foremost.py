"""A hook before those that are there, in every order in which the hooks can be read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle


def foremost(module: nn.Module, hook: Callable[..., Any], **how: Any) -> RemovableHandle:
    """A forward pre-hook that runs first, and stands first.

    torch moves a prepended hook to the front of an `OrderedDict`, whose order as a plain dict stays that of insertion.
    In torch 2.11 torch.compile writes its guards by the plain one, and asks another hook for the attributes of this.
    """
    handle = module.register_forward_pre_hook(hook, prepend=True, **how)
    hooks = module._forward_pre_hooks
    in_order = [*hooks.items()]
    hooks.clear()
    hooks.update(in_order)
    return handle
