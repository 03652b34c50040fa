"""How a base was packed, and which floating-point base it was made of: what a file says of it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from safetensors import SafetensorError
from torch import Tensor, nn

from ..core import Site
from ..formats.fingerprint import of_weights
from .altered import altered
from .disk import Disk
from .names import adapters, named
from .packs import packed_in, parametrizations, slots
from .places import numbers
from .sites import Physical
from .weights import known, packed, plain, stored, unpacked


def quantised(model: nn.Module) -> str | None:
    """``"bitsandbytes nf4"``: the library and form of the packed layers, of several joined by commas; None of a base in
    floating point. Cost: a look at each module."""
    found = {_form(m): None for _, m in named(model) if (packed(m) and _library(m)) or unpacked(m)}
    found |= {f: None for n, m in named(model) if "expert" in n.rpartition(".")[2].lower() for f in _of_experts(m)}
    return ", ".join(found) or None


def _library(module: nn.Module) -> bool:
    w = stored(module)
    return known(module) or (isinstance(w, Tensor) and type(w) not in (nn.Parameter, Tensor))


def _of_experts(module: nn.Module) -> list[str]:
    """Forms of packed experts in one tensor."""
    out = []
    for slot in slots(module):
        w = module._parameters.get(slot)
        if (w is not None and (plain(w) or w.device.type == "meta")) or packed_in(module, slot) is None:
            continue
        made = next(iter(parametrizations(module).get(slot, [])), None)
        state = getattr(made, "quant_state", None)
        if state is not None:
            out.append(f"bitsandbytes {state.quant_type}{' double' if state.nested else ''}")
        elif w is not None and type(w) is not nn.Parameter:
            out.append(f"{type(w).__module__.split('.')[0]} {type(w).__name__}")
        else:
            out.append(f"{type(made or module).__module__.split('.')[0]} {type(made or module).__name__}")
    return out


def _form(module: nn.Module) -> str:
    w, kind = stored(module), type(module)
    state = getattr(w, "quant_state", None)
    if state is not None:
        double = " double" if getattr(state, "nested", False) or getattr(state, "original_nested", False) else ""
        return f"bitsandbytes {state.quant_type}{double}"
    if kind.__module__.startswith("bitsandbytes"):
        return "bitsandbytes int8"
    scheme: Any = getattr(module, "quantization_scheme", None)
    if scheme is not None:
        about = scheme.weights
        return f"compressed-tensors {about.type!s} {about.num_bits}".replace("QuantizationType.", "").lower()
    if isinstance(w, Tensor) and type(w) not in (nn.Parameter, Tensor):
        return f"{type(w).__module__.split('.')[0]} {type(w).__name__}"
    return f"{kind.__module__.split('.')[0]} {kind.__name__}"


def of_float(model: nn.Module, modules: Mapping[str, Physical], sites: Sequence[Site]) -> str | None:
    """The fingerprint of the sites' weights in the checkpoint that a quantised model was made of, see `of_weights`.

    None where none lies on this machine (it was packed on disk already, or is gone), and where the model's weights are
    not what lies there: another revision, or changed since, see `altered`. Cost: 16 reads for every site, once for as
    long as the files stay as they are, and `altered`."""
    folder = _folder(model)
    if folder is None:
        return None
    try:
        with Disk(folder, model) as disk:
            kept = _kept(disk, model)
            if adapters(model) or altered(disk, model, kept):
                return None
            if (of := tuple(sites)) not in kept:
                kept[of] = of_weights(sites, lambda s, places: _numbers(disk, modules[s.name.split("[")[0]], s, places))
            return kept[of]
    except (LookupError, OSError, SafetensorError, RuntimeError, ValueError):  # damaged, or in a form not known here
        return None


_KEPT: WeakKeyDictionary[nn.Module, tuple[list[Any], dict[Any, Any]]] = WeakKeyDictionary()


def _kept(disk: Disk, model: nn.Module) -> dict[Any, Any]:
    """What was found for the model in these files, as long as nobody has written them anew: fingerprints by sites,
    numbers by name and shape."""
    stamp = [(path, (about := path.stat()).st_size, about.st_mtime_ns, about.st_ino) for path in disk.files]
    if (before := _KEPT.get(model)) is None or before[0] != stamp:
        before = _KEPT[model] = (stamp, {})
    return before[1]


def _folder(model: nn.Module) -> Path | None:
    """Where the model was loaded from, if floating-point weights lie there."""
    config = next((c for m in model.modules() if (c := getattr(m, "config", None)) is not None), None)
    name = getattr(config, "_name_or_path", "") or ""
    if not name or not isinstance(name, str):
        return None
    folder = Path(name)
    if not folder.is_dir():
        from huggingface_hub import try_to_load_from_cache

        try:
            cached = try_to_load_from_cache(name, "config.json", revision=getattr(config, "_commit_hash", None))
        except ValueError:  # no name of a repository
            return None
        if not isinstance(cached, str):
            return None
        folder = Path(cached).parent
    try:
        about = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return folder if isinstance(about, dict) and not about.get("quantization_config") else None


def _numbers(disk: Disk, at: Physical, site: Site, places: Tensor) -> Tensor:
    """Raises: LookupError where no tensor in floating point, or more than one, can be the site's."""
    found = numbers(disk, at, site, places)
    if not found.is_floating_point() or found.element_size() < 2:
        raise LookupError(at.key)
    return found
