"""What a shared model had for its training alone is taken away."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from ..core.serial import registered
from .kinds import KINDS
from .shared import stack_of


def settle(model: Any) -> Any:
    """Gives layers whose form is one of training the form that remains, in place. The answers stay the same.

    A form says so by a method ``settled() -> (form, parameters that go)``; a weight that is read by an address with
    `passing` becomes a plain one. The same model comes back.
    """
    sharing = model.config.sharing
    _, blocks = stack_of(model, sharing["path"])
    forms = []
    for told in sharing["forms"]:
        if _passing(told):
            for depth in told["depths"]:
                _plain(blocks.get_submodule(f"{depth}.{told['at']}"), told["options"]["of"], told["parameters"])
            for key in told["parameters"]:
                sharing["tied"].pop(f"{told['at']}.{key}", None)
            continue
        found = getattr(KINDS[told["form"]], "settled", None)
        if found is None:
            forms.append(told)
            continue
        name, gone = told["form"], ()
        for depth in told["depths"]:
            module: Any = blocks.get_submodule(f"{depth}.{told['at']}" if told["at"] else str(depth))
            name, gone = module.settled()
            for key in gone:
                delattr(module, key)
                sharing["tied"].pop(f"{told['at']}.{key}" if told["at"] else key, None)
            module.__class__ = _with(type(module), KINDS[told["form"]], KINDS[name])
        kept = {k: v for k, v in told["parameters"].items() if k not in gone}
        forms.append({**told, "form": name, "parameters": kept})
    sharing["forms"] = forms
    model.know()
    return model


def _passing(told: dict[str, Any]) -> bool:
    address = told.get("options", {}).get("address")
    return isinstance(address, dict) and getattr(registered()[address["is"]], "passing", False)


@torch.no_grad()
def _plain(module: Any, of: str, gone: Iterable[str]) -> None:
    """The one form of a module is taken away, and what it reads is a parameter."""
    value = module.fixed()[of]
    for key in gone:
        delattr(module, key)
    del module.reads
    module.__class__ = type(module).__bases__[1]  # `form` puts a form before the module's own class
    setattr(module, of, nn.Parameter(value))


def _with(made: type, old: type, new: type) -> type:
    """A layer's class with another form in the place of one of its forms."""
    first, own = made.__bases__
    inner = own if first is old else _with(own, old, new)
    kind = new if first is old else first
    return type(f"{kind.__name__}{inner.__name__}", (kind, inner), {"__module__": kind.__module__})
