"""AdaLoRA in PEFT's format: factors and singular values of the directions that are left, and which of all they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ...core import CommonweightError, Site
from ..adapter import Adapter, Frozen
from ..pairs import others
from .common import PREFIX, Native, Subject, check, count, is_off, number, split, understood, whole

_A, _B, _E = "lora_A", "lora_B", "lora_E"
_ABOVE = 1e-5  # what PEFT adds to the number of directions, by which it divides
_KNOWN = (
    "init_r", "target_r", "lora_alpha", "lora_dropout", "tinit", "tfinal", "deltaT", "beta1", "beta2",
    "orth_reg_weight", "total_step", "rank_pattern",
)  # fmt: skip
_SILENT = "r", "alpha_pattern", "use_rslora", "init_lora_weights"  # of LoRA's config, which AdaLoRA does not read
_STEPS = 1000  # that the shares of our schedule are told of


def takes(config: Mapping[str, Any]) -> bool:
    """Whether our own method can say it; else PEFT computes."""
    return all(k in (*_KNOWN, *_SILENT) or is_off(k, v) for k, v in config.items())


def read(config: Mapping[str, Any], tensors: Mapping[str, Tensor], sites: Mapping[str, Site], base: Frozen) -> Adapter:
    """h = W0 x + alpha / (init_r + 1e-5) B diag(E) A x. Sites without a direction are left out."""
    understood(config, *_KNOWN, *_SILENT)
    found = split(tensors, (_A, _B, _E), sites)
    whole(found, _A, _B, _E)
    rank, alpha = count(config, "init_r", 12), number(config, "lora_alpha", 8)
    alpha = float(alpha) if alpha > 0 else float(rank)
    values, ranks = {}, {}
    for key, given in found.items():
        s, r = sites[key], len(given[_A]) if given[_A].dim() else 0
        if r > rank:
            raise CommonweightError(
                f"adapter_model.safetensors: {PREFIX}{key}.{_A} has {r} directions, adapter_config.json says "
                f"init_r={rank}"
            )
        for slot, shape in ((_A, (r, s.inp)), (_B, (s.out, r)), (_E, (r, 1))):
            check(f"{PREFIX}{key}.{slot}", given[slot], shape, "its rank and the base want")
        if r:
            ranks[s.name] = r
            values |= {f"{s.name}.A": given[_A], f"{s.name}.B": given[_B]}
            values[f"{s.name}.d"] = given[_E][:, 0].float() * (rank / (rank + _ABOVE))
    if not ranks:
        raise CommonweightError("adapter_model.safetensors: no direction is left at any site")
    options = {
        "rank": rank,
        "target": min(rank, count(config, "target_r", 8)),
        "alpha": alpha,
        "dropout": float(number(config, "lora_dropout", 0.0)),
        "orthogonal": max(0.0, float(number(config, "orth_reg_weight", 0.5))),
        "ranks": others(ranks, rank),
        **_schedule(config),
    }
    return Adapter("adalora", options, tuple(ranks), values)


def _schedule(config: Mapping[str, Any]) -> dict[str, Any]:
    """When directions go, in shares of the steps."""
    steps = count(config, "total_step", _STEPS)
    end = min(1.0, max(0.0, number(config, "tfinal", 0) / steps))
    begin = min(1.0 - end, max(0.0, number(config, "tinit", 0) / steps))
    betas = {k: min(0.999, max(0.0, float(number(config, k, 0.85)))) for k in ("beta1", "beta2")}
    return {"begin": begin, "end": end, "every": count(config, "deltaT", 1), **betas}


def write(subject: Subject) -> Native:
    """The directions whose d is not zero; all of them while every d is."""
    ours, tensors, pattern = subject.config, {}, {}
    fresh = not any(subject.pool(n, "d").any() for n in subject.sites)
    for name in subject.sites:
        A, B, d = (subject.pool(name, k) for k in "ABd")
        at = torch.ones(len(d), dtype=torch.bool) if fresh else d != 0
        tensors[f"{name}.{_A}"], tensors[f"{name}.{_B}"] = A[at], B[:, at].contiguous()
        tensors[f"{name}.{_E}"] = d[at][:, None] * (1 + _ABOVE / ours.rank)
        if int(at.sum()) < ours.rank:
            pattern[f"{subject.short(name)}.{_E}"] = [*at.tolist(), *[False] * (ours.rank - len(at))]
    first, last = round(ours.begin * _STEPS), round(ours.end * _STEPS)
    config = {
        "peft_type": "ADALORA",
        "init_r": ours.rank,
        "target_r": ours.target,
        "lora_alpha": 2 * ours.rank if ours.alpha is None else ours.alpha,
        "lora_dropout": ours.dropout,
        "tinit": min(first, _STEPS - last - 1) if last < _STEPS else 0,
        "tfinal": min(last, _STEPS - 1),
        "total_step": _STEPS,
        "deltaT": ours.every,
        "beta1": ours.beta1,
        "beta2": ours.beta2,
        "orth_reg_weight": ours.orthogonal,
        "rank_pattern": pattern or None,
        "bias": "none",
    }
    return Native(config, tensors)
