"""A tenant as changed weights of its base."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from ..core import CommonweightError
from . import experts
from .change import changed
from .hooked import HookedModel
from .names import named
from .requantise import of_experts, requantised
from .tenant import Tenant
from .weights import dense, packed, plain, unpacked


def merged(base: HookedModel, tenant: Tenant, requantise: bool = False) -> dict[str, Tensor]:
    """The weights that differ from the base's; see `Host.merged`."""
    out: dict[str, Tensor] = {}
    dtype = floats(base.inner)
    for site, entries in tenant.table.items():
        at = base.modules[site]
        if at.kind == "head":
            continue
        with torch.no_grad():
            if isinstance(at, experts.Stacked):
                for slot, value in at.changed(entries).items():
                    odd = at.pack is not None and slot == at.slot
                    if odd and requantise:
                        again = of_experts(at.module, slot, value, site)
                        out |= {f"{at.home}{k}": v for k, v in again.items()}
                        continue
                    out[at.key if slot == at.slot else f"{at.home}{slot}"] = (
                        value.to(dtype) if odd else value
                    ).contiguous()
                continue
            w, b = changed(at, entries)
            w = at.native(w)
            pack = at.kind == "linear" and at.slot == "weight" and (packed(at.module) or unpacked(at.module))
            if pack and requantise:
                out |= {f"{at.home}{k}": v for k, v in requantised(at.module, w, site).items()}
            else:
                out[at.key] = w.to(dtype if pack else at.weight.dtype).contiguous()
            if b is not None and at.bias is not None and not torch.equal(b, at.bias.float()):
                out[f"{at.home}{at.bias_slot}"] = b.to(at.bias.dtype)
    for site in tenant.table:
        _as_one(base, tenant, site, out)
    return out


def floats(model: nn.Module) -> torch.dtype:
    """The dtype of the base's ordinary weights, which those of packed layers would have."""
    return next((p.dtype for p in model.parameters() if plain(p)), torch.float32)


def in_float(base: HookedModel, changes: dict[str, Tensor]) -> nn.Module:
    """A new model of the base's class, all weights in floating point, and these in place of the base's own."""
    model: Any = base.inner
    kind = vars(type(model)).get("commonweight_plain", type(model))
    if not callable(getattr(kind, "from_pretrained", None)) or getattr(model, "config", None) is None:
        raise CommonweightError(
            f"{type(model).__name__} is no model of transformers that can be made from its config; make the model in "
            "floating point yourself and load host.merged(name) into it"
        )
    config, dtype = deepcopy(model.config), floats(model)
    for key in ("quantization_config", "_pre_quantization_dtype"):
        config.__dict__.pop(key, None)
    new = kind(config).to(dtype)
    packs = [at for at in base.modules.values() if isinstance(at, experts.Stacked) and at.pack is not None]
    state = {k: v for k, v in _state(model, dtype, packs)} | changes
    lost = [k for k in new.load_state_dict(state, strict=False).missing_keys if k not in _tied_keys(new)]
    if lost:
        raise CommonweightError(f"{lost[0]}: {type(model).__name__} in floating point has it, the base does not")
    new.tie_weights()
    return new.eval()


def _state(model: nn.Module, dtype: torch.dtype, packs: Sequence[experts.Stacked]):
    """packs: experts in codes, which a model in floating point has in the layout of its own class."""
    within = {id(m) for at in packs for m in at.module.modules() if m is not at.module}
    for name, module in named(model, once=False):
        start = f"{name}." if name else ""
        if id(module) in within:
            continue
        if mine := [at for at in packs if at.module is module]:
            for at in mine:
                yield f"{start}{at.slot}", at.changed([])[at.slot].to(dtype)
                if at.bias is not None and at.bias_slot is not None:
                    yield f"{start}{at.bias_slot}", dense(module, at.bias_slot, name).to(dtype)
            continue
        if packed(module) or unpacked(module):
            yield f"{start}weight", dense(module, "weight", name).to(dtype)
            if isinstance(module._parameters.get("bias"), Tensor):
                yield f"{start}bias", dense(module, "bias", name).to(dtype)
            continue
        for key, t in {**module._parameters, **module._buffers}.items():
            if t is not None and key not in module._non_persistent_buffers_set:
                yield f"{start}{key}", dense(module, key, f"{start}{key}") if key in module._parameters else t


def _tied_keys(model: Any) -> set[str]:
    return set(getattr(model, "all_tied_weights_keys", None) or getattr(model, "_tied_weights_keys", None) or ())


def _as_one(base: HookedModel, tenant: Tenant, site: str, out: dict[str, Tensor]) -> None:
    """Refuses a changed weight that other modules read too, unless all of them have the same change."""
    at = base.modules[site]
    weight = at.module._parameters.get(at.slot)
    readers = [m for m in base.model.modules() if any(p is weight for p in m._parameters.values())]
    if weight is None or at.kind == "head" or len(readers) < 2:
        return
    all_changed = [base.modules[n] for n in tenant.table]
    mine = [a for a in all_changed if a.module._parameters.get(a.slot) is weight]
    alike = all(torch.allclose(out[a.key].float(), out[at.key].float(), rtol=1e-5, atol=1e-6) for a in mine)
    if not (alike and {id(a.module) for a in mine} == {id(m) for m in readers}):
        raise CommonweightError(
            f"{site}: its weight is tied to another module's, which a merged weight would change too; "
            "untie them first, or leave this site out"
        )
