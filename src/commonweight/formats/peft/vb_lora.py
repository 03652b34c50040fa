"""VB-LoRA in PEFT's format: all logits, or the indices and weights of each mixture alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ...core import CommonweightError, Site
from ..adapter import Adapter, Frozen
from .common import PREFIX, Native, Subject, check, count, number, split, understood, whole

_BANK, _LOGITS = "base_model.vblora_vector_bank", ("vblora_logits_A", "vblora_logits_B")
_NEVER = -1e4  # for PEFT's -inf: exp of it is 0, and files of ours hold finite numbers only


def read(config: Mapping[str, Any], tensors: Mapping[str, Tensor], sites: Mapping[str, Site], base: Frozen) -> Adapter:
    """Bank (h, b), logits (r, d_in / b, h) and (d_out / b, r, h); or indices (.., k) and the first k - 1 weights."""
    known = ("r", "num_vectors", "vector_length", "topk", "save_only_topk_weights", "vblora_dropout")
    understood(config, *known, "init_logits_std", "init_vector_bank_bound")
    r, h, b, k = (count(config, n) for n in ("r", "num_vectors", "vector_length", "topk"))
    compact = bool(config.get("save_only_topk_weights"))
    slots = [f"{s}{end}" for s in _LOGITS for end in (("_topk_indices", "_topk_weights") if compact else ("",))]
    found = split(tensors, slots, sites, (_BANK,))
    whole(found, *slots)
    if _BANK not in tensors:
        raise CommonweightError(f"adapter_model.safetensors: has no {_BANK}")
    check(_BANK, tensors[_BANK], (h, b), "its config wants")
    values = {"vb-lora.bank": tensors[_BANK]}
    for key, given in found.items():
        s = sites[key]
        for slot, peft, shape in (("A", _LOGITS[0], (r, s.inp // b)), ("B", _LOGITS[1], (s.out // b, r))):
            at, name = f"{PREFIX}{key}.{peft}", f"{s.name}.{slot}"
            if not compact:
                check(at, given[peft], (*shape, h))
                values[f"{name}.logits"] = given[peft].clamp(min=_NEVER)
                continue
            index, first = given[f"{peft}_topk_indices"].long(), given[f"{peft}_topk_weights"]
            check(f"{at}_topk_indices", index, (*shape, k))
            check(f"{at}_topk_weights", first, (*shape, k - 1))
            if index.min() < 0 or index.max() >= h:
                raise CommonweightError(f"adapter_model.safetensors: {at}_topk_indices points outside the {h} vectors")
            weights = torch.cat([first, 1 - first.sum(-1, keepdim=True)], -1)
            values[f"{name}.index"], values[f"{name}.logits"] = index, weights.clamp(min=0).log().clamp(min=_NEVER)
    options = {
        "rank": r,
        "num_vectors": h,
        "vector_length": b,
        "topk": k,
        "dropout": float(number(config, "vblora_dropout", 0.0)),
        "compact": compact,
    }
    return Adapter("vb-lora", options, tuple(sites[n].name for n in found), values)


def write(subject: Subject) -> Native:
    ours = subject.config
    tensors = {_BANK: subject.pool(subject.plan.uses[0].site, "A")}
    dtype = torch.uint8 if ours.num_vectors < 2**8 else torch.int16 if ours.num_vectors < 2**15 else torch.int32
    for name in subject.sites:
        for slot, peft in zip("AB", _LOGITS):
            at = f"{name}.{peft}"
            if ours.compact:
                tensors[f"{at}_topk_indices"] = subject.pool(name, slot, 1).to(dtype)
                tensors[f"{at}_topk_weights"] = subject.pool(name, slot, 2).softmax(-1)[..., :-1]
            else:
                tensors[at] = subject.pool(name, slot, 1)
    config = {
        "peft_type": "VBLORA",
        "r": ours.rank,
        "num_vectors": ours.num_vectors,
        "vector_length": tensors[_BANK].shape[1],
        "topk": ours.topk,
        "vblora_dropout": ours.dropout,
        "save_only_topk_weights": ours.compact,
        "bias": "none",
    }
    return Native(config, tensors)
