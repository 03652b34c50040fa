"""What the modules of a model are called, whatever stands around them.

torch.compile, DistributedDataParallel, FSDP, checkpoint wrappers and PEFT put modules of their own around others, and
with them parts into names. Sites, files and exports use the names of the plain model.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from ..core import CommonweightError

_AROUND = "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"  # torch's own, anywhere in a model


def unwrapped(model: nn.Module) -> nn.Module:
    """The model itself, inside of whatever was put around the whole of it.

    Raises: CommonweightError for DataParallel on several devices, whose copies run in threads of their own.
    """
    while True:
        if isinstance(model, nn.DataParallel) and len(model.device_ids) > 1:
            raise CommonweightError(
                "DataParallel copies the model into a thread for each device and cuts a batch apart, so that no reader "
                "of a row is known there; make the host of model.module, and use DistributedDataParallel for several "
                "devices"
            )
        inner = inside(model)
        if inner is model:
            inner = _root(model)
        if inner is model:
            return model
        model = inner


def _root(model: nn.Module) -> nn.Module:
    """One step into a wrapper of a whole model."""
    held = model._modules
    if type(model).__module__.startswith("peft."):
        return held.get("base_model") or held.get("model") or model
    bare = not any(True for _ in model.parameters(recurse=False)) and not any(
        True for _ in model.buffers(recurse=False)
    )
    return held["module"] or model if bare and list(held) == ["module"] else model


def inside(module: nn.Module) -> nn.Module:
    """The module of the base that stands in a wrapper: torch's own, or an adapter that PEFT has put around a layer."""
    while True:
        held = module._modules
        name = next((n for n in _AROUND if held.get(n) is not None), None)
        if name is None and is_adapter(module):
            name = "base_layer" if "base_layer" in held else "original_module"
            copies = held.get("modules_to_save")
            if isinstance(copies, nn.ModuleDict):
                actives: Any = getattr(module, "active_adapters", None) or ()
                for active in actives:
                    if active in copies:
                        return copies[active]
        if name is None:
            return module
        module = held[name]  # type: ignore[assignment]


def is_adapter(module: nn.Module) -> bool:
    """Whether it is a layer of PEFT's around a layer of the base."""
    held = module._modules
    return ("base_layer" in held and hasattr(module, "get_base_layer")) or (
        "original_module" in held and type(module).__module__.startswith("peft.")
    )


def named(model: nn.Module, once: bool = True) -> Iterator[tuple[str, nn.Module]]:
    """(name, module) of the base, in torch's order; wrappers and adapters are left out of both.

    once: each module under its first name alone."""
    yield from _named("", unwrapped(model), set(), once)


def _named(name: str, module: nn.Module, seen: set[int], once: bool) -> Iterator[tuple[str, nn.Module]]:
    if once and id(module) in seen:
        return
    seen.add(id(module))
    yield name, module
    for key, child in module._modules.items():
        if child is not None:
            yield from _named(f"{name}.{key}" if name else key, inside(child), seen, once)


def adapters(model: nn.Module) -> list[str]:
    """Names of the PEFT adapters that the model carries."""
    found: dict[str, None] = {}
    for module in model.modules():
        if is_adapter(module):
            active: Any = getattr(module, "active_adapters", None) or ()
            found.update(dict.fromkeys([active] if isinstance(active, str) else active))
    return list(found)


def paired(model: nn.Module) -> bool:
    """Whether it is an encoder and a decoder."""
    return bool(getattr(getattr(unwrapped(model), "config", None), "is_encoder_decoder", False))


def said(config: Any, name: str, layer: int | None = None) -> Any:
    """What a config says under a name; None where it does not.

    Configs of transformers whose layers differ (Gemma 4) raise where such a value is asked for the whole model: then it
    is the layer's, by its number, or None.
    """
    try:
        return getattr(config, name, None)
    except RuntimeError:
        each = getattr(config, "per_layer_config", None)
        return None if each is None or layer is None else getattr(each[layer], name, None)
