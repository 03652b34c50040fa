"""A model while engines run it: what is changed of it, from the first engine to the end of the last one."""

from __future__ import annotations

import threading
import weakref
from typing import Any

from torch import nn

from ..core import CommonweightError
from ..host import Host


class _Before:
    """What a model was. engines: that run it now."""

    def __init__(self, model: Any):
        self.engines = 0
        self.attention = getattr(model.config, "_attn_implementation", None)
        self.training = [m for m in model.modules() if m.training]


_BEFORE: weakref.WeakKeyDictionary[nn.Module, _Before] = weakref.WeakKeyDictionary()
_LOCK = threading.Lock()


def borrow(host: Host, held: str = "") -> None:
    """For one more engine, in eval mode. held: by whom the vocabulary is held, "" by nobody. The attention that an
    engine needs it sets itself."""
    with _LOCK:
        before = _BEFORE.setdefault(host.model, _Before(host.model))
        before.engines += 1
        host.model.eval()
        if held:
            host.base.limit.held = held


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
        if getattr(model.config, "_attn_implementation", None) != before.attention:
            model.set_attn_implementation(before.attention)
        for module in before.training:
            module.training = True


def drops(model: nn.Module) -> bool:
    """Whether it has dropout, which training mode turns on."""
    if any(isinstance(m, nn.modules.dropout._DropoutNd) and m.p > 0 for m in model.modules()):
        return True
    told = vars(getattr(model, "config", None)) if hasattr(model, "config") else {}
    return any(
        ("dropout" in name or name.endswith("pdrop")) and isinstance(p, float) and p > 0 for name, p in told.items()
    )


def steady(model: nn.Module, dropping: bool) -> None:
    """Raises: CommonweightError where somebody trains it meanwhile and dropout would change what it answers."""
    if dropping and model.training:
        raise CommonweightError(
            "the model is in training mode, in which its dropout changes answers: call model.eval(), or train a tenant "
            "while no engine runs"
        )
