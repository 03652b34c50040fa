"""LoRA in PEFT's format, and its kin that PEFT keeps under the same peft_type: DoRA and PiSSA."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ...bind import BiasShift
from ...core import CommonweightError, Site
from .common import (
    PREFIX,
    Adapter,
    Frozen,
    Native,
    Subject,
    by_pattern,
    check,
    commonest,
    count,
    exactly,
    number,
    others,
    patterns,
    split,
    understood,
    whole,
)

_KNOWN = (
    "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "lora_dropout", "init_lora_weights", "use_dora",
    "lora_bias",
)  # fmt: skip
_A, _B, _M, _BIAS = "lora_A.weight", "lora_B.weight", "lora_magnitude_vector", "lora_B.bias"
_MOVES_THE_BASE = ("olora", "loftq", "corda", "lora_ga")


def read(config: Mapping[str, Any], tensors: Mapping[str, Tensor], sites: Mapping[str, Site], base: Frozen) -> Adapter:
    """h = W0 x + s (B A x + b) with s = alpha / r, or alpha / sqrt(r) (use_rslora); DoRA and PiSSA around it.

    b is there with lora_bias alone; our b is theirs times s.
    """
    understood(config, *_KNOWN)
    biased = bool(config.get("lora_bias"))
    if not biased and (key := next((k for k in tensors if k.endswith(_BIAS)), None)):
        raise CommonweightError(f"adapter_model.safetensors: {key}: adapter_config.json does not say lora_bias=true")
    init, dora = config.get("init_lora_weights", True), bool(config.get("use_dora"))
    pissa = init == "pissa"
    if isinstance(init, str) and (init in _MOVES_THE_BASE or init.startswith("pissa_")):
        raise CommonweightError(
            f"adapter_config.json: init_lora_weights={init!r} moved the base weights in a way that the file does not "
            "repeat; save it in PEFT with path_initial_model_for_weight_conversion, which makes it plain LoRA"
        )
    if pissa and dora:
        raise CommonweightError("adapter_config.json: init_lora_weights='pissa' with use_dora=True is not supported")
    if biased and (dora or pissa):
        raise CommonweightError("adapter_config.json: lora_bias=true is not supported for DoRA and PiSSA")
    slots = (_A, _B, *((_M,) if dora else ()), *((_BIAS,) if biased else ()))
    found = split(tensors, slots, sites)
    whole(found, *slots)
    rank_pattern, alpha_pattern = patterns(config, "rank_pattern"), patterns(config, "alpha_pattern")
    r, alpha = count(config, "r"), number(config, "lora_alpha", 8)
    ranks, alphas, values = {}, {}, {}
    for key, given in found.items():
        s, A, B = sites[key], given[_A], given[_B]
        want = by_pattern(rank_pattern, key, r)
        check(f"{PREFIX}{key}.{_A}", A, (want, s.inp), "its rank and the base want")
        check(f"{PREFIX}{key}.{_B}", B, (s.out, want), "its rank and the base want")
        ranks[s.name] = A.shape[0]
        alphas[s.name] = float(by_pattern(alpha_pattern, key, alpha))
        values[f"{s.name}.A"], values[f"{s.name}.B"] = A, B
        if dora:
            check(f"{PREFIX}{key}.{_M}", given[_M], (s.out,))
            values[f"{s.name}.m"] = given[_M]
    rslora = bool(config.get("use_rslora"))
    for key in found if biased else ():
        s, b = sites[key], found[key][_BIAS]
        check(f"{PREFIX}{key}.{_BIAS}", b, (s.out,))
        if s.bias:
            r = ranks[s.name]
            values[f"{s.name}.b"] = b * (alphas[s.name] / (math.sqrt(r) if rslora else r))
        elif b.any():
            raise CommonweightError(
                f"adapter_model.safetensors: {PREFIX}{key}.{_BIAS}: the layer has no bias that it could change"
            )
    if pissa:
        return _pissa(ranks, alphas, values, rslora, base)
    rank, alpha = commonest(ranks.values()), commonest(alphas.values())
    options = {
        "rank": rank,
        "alpha": alpha,
        "rslora": rslora,
        "dropout": float(number(config, "lora_dropout", 0.0)),
        "ranks": others(ranks, rank),
        "alphas": others(alphas, alpha),
        **({"bias": True} if biased else {}),
    }
    return Adapter("dora" if dora else "lora", options, tuple(ranks), values)


def _pissa(
    ranks: Mapping[str, int], alphas: Mapping[str, float], values: Mapping[str, Tensor], rslora: bool, base: Frozen
) -> Adapter:
    """PEFT takes the leading r singular triplets out of the base whenever it loads: w' = w - U S V + s B A.

    As our PiSSA where every site has one rank and scale; else as LoRA of twice the rank, s [B, -B0] [A; A0] with
    A0 = sqrt(S / s) V and B0 = U sqrt(S / s). Their product does not depend on the signs of the singular vectors.
    """
    scales = {n: alphas[n] / (math.sqrt(r) if rslora else r) for n, r in ranks.items()}
    if len({*ranks.values()}) == len({*scales.values()}) == 1:
        rank, scale = commonest(ranks.values()), commonest(scales.values())
        return Adapter("pissa", {"rank": rank, "alpha": scale * rank}, tuple(ranks), dict(values))
    doubled, out = {}, {}
    for site, r in ranks.items():
        scale = scales[site]
        u, s, v = (t.cpu() for t in base.svd(site))
        root = (s[:r] / scale).sqrt()
        out[f"{site}.A"] = torch.cat([values[f"{site}.A"], root[:, None] * v[:r]])
        out[f"{site}.B"] = torch.cat([values[f"{site}.B"], -u[:, :r] * root], 1)
        doubled[site] = (2 * r, scale * 2 * r)
    rank, alpha = commonest(doubled.values())
    options = {
        "rank": rank,
        "alpha": alpha,
        "ranks": others({k: r for k, (r, _) in doubled.items()}, rank),
        "alphas": others({k: a for k, (_, a) in doubled.items()}, alpha),
    }
    return Adapter("lora", options, tuple(ranks), out)


def write(subject: Subject) -> Native:
    """LoRA, DoRA and PiSSA as they are. The scale of each site becomes alpha = scale * rank."""
    dora, pissa = subject.method == "dora", subject.method == "pissa"
    tensors, ranks, alphas = {}, {}, {}
    biased = getattr(subject.config, "bias", False)
    for use in subject.plan.uses:
        if isinstance(use.bind, BiasShift):
            continue
        A, B = subject.pool(use.site, "A"), subject.pool(use.site, "B")
        tensors[f"{use.site}.{_A}"], tensors[f"{use.site}.{_B}"] = A, B
        if dora:
            tensors[f"{use.site}.{_M}"] = subject.pool(use.site, "m")
        if biased:  # PEFT asks for one at every layer, and scales it as it scales B A x
            own = subject.pools.get(f"{use.site}.b")
            tensors[f"{use.site}.{_BIAS}"] = B.new_zeros(B.shape[0]) if own is None else own / use.bind.scale
        ranks[use.site], alphas[use.site] = A.shape[0], use.bind.scale * A.shape[0]
    rank, alpha = commonest(ranks.values()), commonest(alphas.values())
    config = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": int(alpha) if float(alpha).is_integer() else alpha,
        "rank_pattern": {exactly(subject.short(n)): r for n, r in others(ranks, rank)},
        "alpha_pattern": {exactly(subject.short(n)): a for n, a in others(alphas, alpha)},
        "lora_dropout": getattr(subject.config, "dropout", 0.0),
        "init_lora_weights": "pissa" if pissa else True,
        "use_dora": dora,
        "use_rslora": False,
        "bias": "none",
        "lora_bias": biased,
    }
    return Native(config, tensors)
