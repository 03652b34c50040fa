"""VeRA in PEFT's format. PEFT draws A and B by torch's own generator; here they become saved pools of the tenant."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ...core import CommonweightError, Site
from ..adapter import Adapter, Frozen
from .common import PREFIX, Native, Subject, check, count, number, seed, split, understood, whole

_D, _b, _A, _B = "vera_lambda_d", "vera_lambda_b", "base_model.vera_A", "base_model.vera_B"


def read(config: Mapping[str, Any], tensors: Mapping[str, Tensor], sites: Mapping[str, Site], base: Frozen) -> Adapter:
    """A (r, d_in) and B (d_out, r) from the file, or as PEFT draws them from projection_prng_key."""
    understood(config, "r", "projection_prng_key", "save_projection", "vera_dropout", "d_initial")
    found = split(tensors, (_D, _b), sites, (_A, _B))
    whole(found, _D, _b)
    r, mine = count(config, "r"), [sites[k] for k in found]
    d_in, d_out = max(s.inp for s in mine), max(s.out for s in mine)
    values = {}
    for key, given in found.items():  # first of all: r is what the file holds, before anything of that size is drawn
        s = sites[key]
        check(f"{PREFIX}{key}.{_D}", given[_D], (r,), "its config wants")
        check(f"{PREFIX}{key}.{_b}", given[_b], (s.out,))
        values[f"{s.name}.d"], values[f"{s.name}.b"] = given[_D], given[_b]
    A, B = projections(config, tensors, r, d_in, d_out)
    values |= {"vera.A": A[:, :d_in].contiguous(), "vera.B": B[:d_out].contiguous()}
    options = {"rank": r, "dropout": float(number(config, "vera_dropout", 0.0)), "stored": True}
    return Adapter("vera", options, tuple(s.name for s in mine), values)


def projections(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor], r: int, d_in: int, d_out: int
) -> tuple[Tensor, Tensor]:
    if _A in tensors and _B in tensors:
        A, B = tensors[_A], tensors[_B]
        for key, value, want in ((_A, A, (r, d_in)), (_B, B, (d_out, r))):
            if value.dim() != 2 or value.shape[0] < want[0] or value.shape[1] < want[1]:
                raise CommonweightError(
                    f"adapter_model.safetensors: {key} is {tuple(value.shape)}, its config and the base want {want}"
                )
        return A[:r], B[:, :r]
    if config.get("save_projection", True):
        raise CommonweightError(f"adapter_model.safetensors: has no {_A} and {_B}, though save_projection is true")
    g = torch.Generator().manual_seed(seed(config, "projection_prng_key"))
    return tuple(nn.init.kaiming_uniform_(torch.empty(s), generator=g) for s in ((r, d_in), (d_out, r)))  # type: ignore


def write(subject: Subject) -> Native:
    """With the projections in the file (save_projection), for ours come from another generator."""
    tensors, first = {}, subject.plan.uses[0].site
    for name in subject.sites:
        tensors[f"{name}.{_D}"], tensors[f"{name}.{_b}"] = subject.pool(name, "d"), subject.pool(name, "b")
    tensors[_A], tensors[_B] = subject.pool(first, "A"), subject.pool(first, "B")
    config = {
        "peft_type": "VERA",
        "r": tensors[_A].shape[0],
        "projection_prng_key": 0,
        "save_projection": True,
        "vera_dropout": subject.config.dropout,
        "bias": "none",
    }
    return Native(config, tensors)
