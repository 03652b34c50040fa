"""What a tenant's module offers of its model: every part and function of it acts as the tenant, or refuses by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, update_wrapper
from typing import Any

from torch import Tensor, nn

from ..core import CommonweightError

# functions of a model that write its base, or that would pass the plain base off as the tenant
REFUSED = {
    "push_to_hub": "it would upload the plain base; write the tenant with save_pretrained(folder), and upload that",
    "from_pretrained": "load the base first, make a host of it, then load the tenant: host.load(name, file)",
    "resize_token_embeddings": "it changes the base, which all tenants read; resize the model before the host is made",
    **dict.fromkeys(
        ("set_input_embeddings", "set_output_embeddings", "set_decoder", "set_encoder", "init_weights", "prune_heads"),
        "it changes the base, which all tenants read; change the model before the host is made",
    ),
    **dict.fromkeys(
        ("add_adapter", "load_adapter", "set_adapter", "enable_adapters", "disable_adapters", "delete_adapter"),
        "adapters on a host are tenants: host.add(...), host.import_peft(name, folder)",
    ),
    **dict.fromkeys(
        ("quantize", "dequantize", "save_quantized"), "it changes the base; do it before the host is made"
    ),
}  # fmt: skip


def acting(value: Any, run: Callable, weights: Callable) -> Any:
    """`value`, an attribute of the model or of a part of it, as the tenant's.

    run(function, *args, **kwargs) calls within the tenant's route. weights(module) is its (weight, bias) as the tenant
    reads them, or None where the tenant leaves it as it is. Anything but a module or a bound function of one is itself.
    """
    if isinstance(value, Acting):
        return value
    if isinstance(value, nn.Module):
        return Acting(value, run, weights)
    if callable(value) and isinstance(getattr(value, "__self__", getattr(value, "model", None)), nn.Module):
        return Function(value, run, weights)
    return value


class Function:
    """A function of the model that runs as the tenant; a module that it returns acts as the tenant too."""

    def __init__(self, function: Callable, run: Callable, weights: Callable):
        self.function, self.run, self.weights = function, run, weights
        update_wrapper(self, function, updated=())

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return acting(self.run(self.function, *args, **kwargs), self.run, self.weights)


class Acting:
    """A part of the model that answers as the tenant; to `isinstance` it is what the part is."""

    def __init__(self, part: nn.Module, run: Callable, weights: Callable):
        self.__dict__.update(_part=part, _run=run, _weights=weights)

    @property
    def __class__(self):  # type: ignore[override]
        return type(self.__dict__["_part"])

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._run(self._part, *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        part = self.__dict__["_part"]
        if name in ("weight", "bias") and isinstance(getattr(part, name, None), Tensor):
            changed = self.__dict__["_weights"](part)
            if changed is not None:
                return changed[name == "bias"]
        return acting(getattr(part, name), self.__dict__["_run"], self.__dict__["_weights"])

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._part, name, value)

    def __getitem__(self, key: Any) -> Any:
        return acting(self._part[key], self._run, self._weights)

    def __iter__(self):
        return (acting(v, self._run, self._weights) for v in self._part)

    def __len__(self) -> int:
        return len(self._part)

    def __repr__(self) -> str:
        return f"{self._part!r}, as a tenant reads it"


def refused(name: str) -> Callable:
    return partial(_refuse, name)


def _refuse(name: str, *_: Any, **__: Any) -> None:
    raise CommonweightError(f"{name} of a tenant's module: {REFUSED[name]}")
