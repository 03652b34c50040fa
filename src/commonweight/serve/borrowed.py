"""A model while engines run it: what is changed of it, from the first engine to the end of the last one."""

from __future__ import annotations

import threading
import weakref
from typing import Any

from torch import nn

from ..host import Host


class _Before:
    """What a model was. engines: that run it now."""

    def __init__(self, model: Any):
        self.engines = 0
        self.attention = model.config._attn_implementation
        self.training = [m for m in model.modules() if m.training]


_BEFORE: weakref.WeakKeyDictionary[nn.Module, _Before] = weakref.WeakKeyDictionary()
_LOCK = threading.Lock()


def borrow(host: Host) -> None:
    """For one more engine. It sets the attention and the mode that it needs itself."""
    with _LOCK:
        before = _BEFORE.setdefault(host.model, _Before(host.model))
        before.engines += 1
        host.base.limit.held = "an engine"


def give_back(host: Host) -> None:
    """An engine has ended; with the last one, the model is what it was."""
    model: Any = host.model
    with _LOCK:
        before = _BEFORE[model]
        before.engines -= 1
        if before.engines:
            return
        del _BEFORE[model]
        host.base.limit.held = ""
        model.set_attn_implementation(before.attention)
        for module in before.training:
            module.training = True
