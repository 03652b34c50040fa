"""A tenant as changed weights of its base."""

from __future__ import annotations

import torch
from torch import Tensor

from ..core import CommonweightError
from . import experts
from .change import changed
from .hooked import HookedModel
from .sites import Physical
from .tenant import Tenant


def merged(base: HookedModel, tenant: Tenant) -> dict[str, Tensor]:
    """The weights that differ from the base's; see `Host.merged`."""
    out: dict[str, Tensor] = {}
    for site, entries in tenant.table.items():
        at = base.modules[site]
        if at.kind == "head":
            continue
        if _tied(base, at):
            raise CommonweightError(
                f"{site}: its weight is tied to another module's, which a merged weight would change too; "
                "untie them first, or leave this site out"
            )
        with torch.no_grad():
            if isinstance(at, experts.Stacked):
                for slot, value in at.changed(entries).items():
                    out[at.key if slot == at.slot else f"{at.home}{slot}"] = value.contiguous()
                continue
            w, b = changed(at, entries)
            w = w.T if at.transposed else w
            out[at.key] = w.to(at.weight.dtype).contiguous()
            if b is not None and at.bias is not None and not torch.equal(b, at.bias.float()):
                out[f"{at.home}{at.bias_slot}"] = b.to(at.bias.dtype)
    return out


def _tied(base: HookedModel, at: Physical) -> bool:
    weight = at.module._parameters.get(at.slot)
    owners = [m for m in base.model.modules() if any(p is weight for p in m._parameters.values())]
    return weight is not None and len(owners) > 1
