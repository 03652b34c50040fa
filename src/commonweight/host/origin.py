"""How a base was packed, and which floating-point base it was made of: what a file says of it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from ..core import Site
from ..formats.fingerprint import of_weights
from .disk import Disk
from .names import named
from .packs import packed_in, slots
from .sites import Physical
from .weights import known, packed, plain, stored, unpacked

_PLACES = torch.arange(1, 9, dtype=torch.int64) * 2654435761  # a large odd step apart


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
        made = next(iter(dict(getattr(module, "parametrizations", {})).get(slot, [])), None)
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
    scheme = getattr(module, "quantization_scheme", None)
    if scheme is not None:
        about = scheme.weights
        return f"compressed-tensors {about.type!s} {about.num_bits}".replace("QuantizationType.", "").lower()
    if isinstance(w, Tensor) and type(w) not in (nn.Parameter, Tensor):
        return f"{type(w).__module__.split('.')[0]} {type(w).__name__}"
    return f"{kind.__module__.split('.')[0]} {kind.__name__}"


def of_float(model: nn.Module, modules: Mapping[str, Physical], sites: Sequence[Site]) -> str | None:
    """The fingerprint of the sites' weights in the checkpoint that a quantised model was made of, see `of_weights`.

    None where none lies on this machine (it was packed on disk already, or is gone), and where what the model keeps
    unpacked is not what lies there: another revision, or weights that were changed since. Cost: 16 reads for every
    site, and 8 for every plain tensor, once for as long as the files stay as they are."""
    folder = _folder(model)
    if folder is None:
        return None
    try:
        with Disk(folder, model) as disk:
            kept = _kept(disk, model)
            if _altered(disk, model, kept):
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


def _altered(disk: Disk, model: nn.Module, kept: dict[Any, Any]) -> bool:
    """Whether a plain weight of the model is another than the one of its name on disk, as far as 8 numbers tell."""
    for name, module in named(model):
        if packed(module) or unpacked(module):
            continue
        for key, p in module._parameters.items():
            if p is None or not plain(p) or not p.numel():
                continue
            flat, of = _PLACES % p.numel(), (f"{name}.{key}" if name else key, tuple(p.shape))
            if of not in kept:
                kept[of] = _there(disk, *of, flat)
            if (there := kept[of]) is None:
                continue
            here = p.detach().reshape(-1)[flat.to(p.device)].cpu()
            if not torch.allclose(here.float(), there.to(here.dtype).float(), rtol=2e-2, atol=1e-6):
                return True
    return False


def _there(disk: Disk, name: str, shape: tuple[int, ...], flat: Tensor) -> Tensor | None:
    """Numbers of a weight on disk; None where none of this shape lies there in floating point."""
    try:
        held = disk.find(name, shape)
    except LookupError:  # a head that is new
        return None
    if held.shape != shape:
        return None
    found = held.flat(flat)
    return found if found.is_floating_point() and found.element_size() > 1 else None


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


def _turned(module: nn.Module) -> bool:
    """Whether a layer has taken the place of one that kept its weight as (inp, out): GPT-2's Conv1D."""
    return any(k.__name__ == "Conv1D" for k in getattr(getattr(module, "source_cls", None), "__mro__", ()))


def _numbers(disk: Disk, at: Physical, site: Site, places: Tensor) -> Tensor:
    """Raises: LookupError where no tensor, or more than one, can be the site's."""
    from .experts import Stacked  # with all that runs a model, which merging has no use of

    transposed = at.transposed or _turned(at.module)
    if isinstance(at, Stacked):
        wanted = (at.count, at.inp, at.out) if at.turned else (at.count, at.out, at.inp)
    else:
        wanted = (site.inp, site.out) if transposed else (site.out, site.inp)
    held = disk.find(at.key, wanted)
    shape, o, i = held.shape, places // site.inp + (site.rows[0] if site.rows else 0), places % site.inp
    if isinstance(at, Stacked):  # one expert's matrix after the other, whatever the tensor's dimensions
        e, o = o // at.out, o % at.out
        flat = (e * at.inp + i) * at.out + o if at.turned else (e * at.out + o) * at.inp + i
        fits = math.prod(shape) == math.prod(wanted)
    elif len(shape) == 1:
        flat, fits = places, shape == (site.out,) and site.inp == 1
    else:
        flat = i * shape[-1] + o if transposed else o * shape[-1] + i
        fits = len(shape) == 2 and shape[0 if transposed else 1] == site.inp
    if not fits:
        raise LookupError(at.key)
    found = held.flat(flat)
    if not found.is_floating_point() or found.element_size() < 2:
        raise LookupError(at.key)
    return found
