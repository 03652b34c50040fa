"""What a tenant changes of experts and routers, as PEFT's ``target_parameters`` say it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from ...core import CommonweightError
from ...formats.peft.low_rank import Low
from ..experts import Expert, Stacked
from ..hooked import HookedModel
from ..tenant import Tenant
from .changes import low_of_one


class Parameter(NamedTuple):
    """One parameter. low: A (E r, inp), expert after expert, and B (out, r E), rank after rank. rank: r."""

    low: Low
    rank: int


def parameters(base: HookedModel, tenant: Tenant, rank: int | None, tolerance: float) -> dict[str, Parameter]:
    """By the parameter's name. All experts of one have the same rank in PEFT: smaller ones are filled with zeros.

    Raises: CommonweightError where a bias of an expert or router is changed, which PEFT cannot express.
    """
    out = {}
    for name, entries in tenant.table.items():
        at = base.modules[name]
        if not isinstance(at, Stacked):
            continue
        found = {}
        for e, mine in at.by_expert(entries).items():
            one = low_of_one(Expert(at, e), mine, rank, tolerance)
            if one.bias is not None:
                raise CommonweightError(
                    f"{name}: {tenant.method.name} changes its bias, for which PEFT has no format; keep the tenant in "
                    "its own file (host.save), or write the merged weights (host.merged)"
                )
            found[e] = one
        out[at.key] = _stacked(found, at)
    return out


def _stacked(found: Mapping[int, Low], at: Stacked) -> Parameter:
    r = max(low.A.shape[0] for low in found.values())
    A, B = torch.zeros(at.count, r, at.inp), torch.zeros(at.out, r, at.count)
    for e, low in found.items():
        n = low.A.shape[0]
        A[e, :n], B[:, :n, e] = low.A, low.B
    return Parameter(Low(A.flatten(0, 1), B.flatten(1), max(low.error for low in found.values())), r)


def tensors(base: HookedModel, found: Mapping[str, Parameter]) -> dict[str, Tensor]:
    """By key. PEFT wraps a module once for each of its parameters, in the module's order: the last is outermost."""
    out = {}
    by_module: dict[str, list[str]] = {}
    for at in base.modules.values():
        if isinstance(at, Stacked) and at.key in found:
            by_module.setdefault(at.key.rpartition(".")[0], []).append(at.key)
    for home, keys in by_module.items():
        for depth, key in enumerate(reversed(keys)):
            start = home + ".base_layer" * depth
            out[f"{start}.lora_A.weight"], out[f"{start}.lora_B.weight"] = found[key].low.A, found[key].low.B
    return out
