"""TinyLoRA in PEFT's format. PEFT's factors and random matrices become saved pools of the tenant."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ...core import CommonweightError, Site
from ...methods.low_rank.tinylora import group
from ..adapter import Adapter, Frozen
from .common import PREFIX, Native, Subject, check, count, number, one_of, seed, split, understood, whole

_A, _B, _P, _V = "tinylora_A", "tinylora_B", "tinylora_P", "base_model.tinylora_v."


def read(config: Mapping[str, Any], tensors: Mapping[str, Tensor], sites: Mapping[str, Site], base: Frozen) -> Adapter:
    """A (r, d_in), B (d_out, r) and P (u, r, r) of every site; v (u,) of every group of sites, in the model's order."""
    known = "r", "u", "weight_tying", "projection_seed", "save_projection", "tinylora_dropout"
    understood(config, *known, "init_v_bound")
    vectors = {k: v for k, v in tensors.items() if k.startswith(_V)}
    found = split(tensors, (_A, _B, _P), sites, vectors)
    whole(found, _A, _B)
    r = one_of("the rank", {k: given[_A].shape[0] for k, given in found.items()})
    u, n, G = count(config, "u"), len(found), len(vectors)
    tied = max(1, round(n * (1.0 - number(config, "weight_tying", 0.0))))
    if tied != G:
        raise CommonweightError(
            f"adapter_model.safetensors: holds {G} vectors tinylora_v, its config wants {tied} for {n} layers"
        )
    values, names = {}, [s.name for k, s in sites.items() if k in found]
    for i, (key, s) in enumerate((k, s) for k, s in sites.items() if k in found):
        A, B, P = found[key][_A], found[key][_B], found[key].get(_P)
        v = tensors.get(f"{_V}{group(i, n, G)}")
        if v is None:
            raise CommonweightError(f"adapter_model.safetensors: has no tinylora_v.{group(i, n, G)}")
        check(f"{_V}{group(i, n, G)}", v, (u,))
        P = _drawn(config, i, u, r) if P is None else P
        for k, t, shape in ((_A, A, (r, s.inp)), (_B, B, (s.out, r)), (_P, P, (u, r, r))):
            check(f"{PREFIX}{key}.{k}", t, shape)
        values |= {f"{s.name}.{k}": t.float() for k, t in (("A", A), ("B", B), ("P", P))}
        values[f"{s.name}.v" if n == G else f"tinylora.v{group(i, n, G)}"] = v
    options = {
        "rank": r,
        "vectors": u,
        "groups": 0 if n == G else G,
        "dropout": float(number(config, "tinylora_dropout", 0.0)),
        "stored": True,
    }
    return Adapter("tinylora", options, tuple(names), values)


def _drawn(config: Mapping[str, Any], layer: int, u: int, r: int) -> Tensor:
    """As PEFT draws them where its file does not hold them."""
    if config.get("save_projection", True):
        raise CommonweightError(f"adapter_model.safetensors: has no {_P}, though save_projection is true")
    g = torch.Generator().manual_seed(seed(config, "projection_seed") + layer)
    return torch.normal(mean=0.0, std=1.0 / (r**0.5), size=(u, r, r), generator=g)


def write(subject: Subject) -> Native:
    """With everything in the file (save_projection)."""
    ours, n, tensors = subject.config, len(subject.sites), {}
    G = min(ours.groups, n) or n
    for i, name in enumerate(subject.sites):
        tensors |= {f"{name}.{k}": subject.pool(name, slot) for k, slot in ((_A, "A"), (_B, "B"), (_P, "M"))}
        tensors[f"{_V}{group(i, n, G)}"] = subject.pool(name, "M", 1)
    config = {
        "peft_type": "TINYLORA", "r": ours.rank, "u": ours.vectors, "weight_tying": 1 - G / n, "bias": "none",
        "projection_seed": 42, "save_projection": True, "tinylora_dropout": ours.dropout,
    }  # fmt: skip
    return Native(config, tensors)
