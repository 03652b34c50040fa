"""What a tenant changes of experts and routers, in factors, and as PEFT's ``target_parameters`` say it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...core import CommonweightError
from ...formats.peft.common import exactly
from ...formats.peft.low_rank import Low
from ..experts import Expert, Stacked
from ..hooked import HookedModel
from ..tenant import Tenant
from ..weights import packed
from .changes import low_of_one


class Parameter(NamedTuple):
    """One parameter. low: A (E r, inp), expert after expert, and B (out, r E), rank after rank. rank: r."""

    low: Low
    rank: int


class Factors(NamedTuple):
    """What a tenant adds to all experts of a parameter; a router is one. A (E, r, inp), B (E, out, r): B A of a weight
    (out, inp), smaller ranks filled with zeros. error: the largest relative error of one."""

    at: Stacked
    A: Tensor
    B: Tensor
    error: float

    @property
    def first(self) -> Low:
        """Of one expert, with the error of the worst: what tells rank and error."""
        return Low(self.A[0], self.B[0], self.error)


def factors(
    base: HookedModel, tenant: Tenant, rank: int | None, tolerance: float, format: str = "PEFT"
) -> dict[str, Factors]:
    """By our names of the parameters.

    Raises: CommonweightError where a bias of an expert or router is changed, which no format can express.
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
                    f"{name}: {tenant.method.name} changes its bias, for which {format} has no format; keep the tenant "
                    "in its own file (host.save), or write the merged weights (host.merged)"
                )
            found[e] = one
        out[name] = _stacked(found, at)
    return out


def parameters(base: HookedModel, tenant: Tenant, rank: int | None, tolerance: float) -> dict[str, Parameter]:
    """By the parameter's name in the model. All experts of one have the same rank in PEFT."""
    out = {}
    for at, A, B, error in factors(base, tenant, rank, tolerance).values():
        if at.caller is not at.module:
            raise CommonweightError(
                f"{at.name}: the model reads these experts past the module that holds them, where PEFT stops with an "
                "error; keep the tenant in its own file (host.save), or write the merged weights (host.merged)"
            )
        r = A.shape[1]
        if at.crossed:  # B A is a change of the parameter as it lies there, (E, inp, out)
            A, B = B.mT, A.mT
        out[at.key] = Parameter(Low(A.flatten(0, 1), B.permute(1, 2, 0).flatten(1), error), r)
    return out


_OF_EXPERTS = {"gate", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3"}


def mistaken(base: HookedModel, name: str) -> bool:
    """Whether PEFT takes a linear layer for a part of the experts: in models that had a layer for each expert in
    transformers 4 it moves all target_modules of these names to the fused parameters, shared experts and dense layers
    too (`_convert_peft_config_moe` of 0.21.2). Named by its weight's own parameter, it is left in peace."""
    at = base.modules.get(name)
    return (
        at is not None
        and at.kind == "linear"
        and name.rpartition(".")[2] in _OF_EXPERTS
        and not packed(at.module)
        and any(isinstance(m, Stacked) and m.kind == "expert" for m in base.modules.values())
    )


def by_parameter(config: dict[str, Any], names: list[str]) -> dict[str, Any]:
    """The config of a LoRA that reads the layers `names` by their weights' parameters, where PEFT has no dropout."""
    known = {exactly(n): exactly(f"{n}.weight") for n in names}
    patterns = {
        key: {known.get(k, k): v for k, v in (config.get(key) or {}).items()}
        for key in ("rank_pattern", "alpha_pattern")
    }
    targets = sorted({*(config.get("target_parameters") or ()), *(f"{n}.weight" for n in names)})
    return {**config, **patterns, "target_parameters": targets, "lora_dropout": 0.0}


def _stacked(found: Mapping[int, Low], at: Stacked) -> Factors:
    r = max(low.A.shape[0] for low in found.values())
    A, B = torch.zeros(at.count, r, at.inp), torch.zeros(at.count, at.out, r)
    for e, low in found.items():
        n = low.A.shape[0]
        A[e, :n], B[e, :, :n] = low.A, low.B
    return Factors(at, A, B, max(low.error for low in found.values()))


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
