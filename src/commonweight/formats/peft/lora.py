"""LoRA in PEFT's format, and its kin that PEFT keeps under the same peft_type: DoRA, EVA, PiSSA, OLoRA and LoRA-FA."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ...bind import Activated, BiasShift
from ...core import CommonweightError, Site
from ..adapter import Adapter, Frozen
from ..pairs import commonest, others
from . import experts, moved, refusals, shaped
from .common import (
    PREFIX,
    WHERE,
    Native,
    Subject,
    by_pattern,
    check,
    count,
    exactly,
    number,
    patterns,
    split,
    understood,
    whole,
)

# How the factors were first filled; init_lora_weights says which.
_INVOCATION = "alora_invocation_tokens"
HOW_IT_STARTED = "corda_config", "eva_config", "loftq_config", "lora_ga_config"
_KNOWN = (
    "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "lora_dropout", "init_lora_weights", "use_dora",
    "lora_bias", "bias", "target_parameters", "monteclora_config", "velora_config", _INVOCATION, *HOW_IT_STARTED,
)  # fmt: skip
STARTS = "eva", "pissa", "olora"  # methods of ours by PEFT's word for how its factors began
_A, _B, _M, _BIAS = "lora_A.weight", "lora_B.weight", "lora_magnitude_vector", "lora_B.bias"
_OF_TRAINING = ".lora_monteclora_sampler.", ".lora_velora_"  # noise, and saved activations
_OWN = "base_layer.bias", "bias"  # the layer's own bias, trained (bias="lora_only")


def read(config: Mapping[str, Any], tensors: Mapping[str, Tensor], sites: Mapping[str, Site], base: Frozen) -> Adapter:
    """h = W0 x + s (B A x + b) with s = alpha / r, or alpha / sqrt(r) (use_rslora); DoRA, PiSSA and OLoRA around it.

    b is there with lora_bias alone; our b is theirs times s, and what a trained bias of the base gained.
    """
    understood(config, *_KNOWN)
    biased = bool(config.get("lora_bias"))
    if not biased and (key := next((k for k in tensors if k.endswith(_BIAS)), None)):
        raise CommonweightError(f"adapter_model.safetensors: {key}: adapter_config.json does not say lora_bias=true")
    how, dora = moved.by(config.get("init_lora_weights", True)), bool(config.get("use_dora"))
    slots = (_A, _B, *((_M,) if dora else ()), *((_BIAS,) if biased else ()))
    tensors = {k: v for k, v in tensors.items() if not any(part in k for part in _OF_TRAINING)}
    if stray := next((k for k in tensors if _is_stray(k, tensors)), None):
        raise refusals.tensor(stray, refusals.trained_bias(config.get("bias")))
    rank_pattern, alpha_pattern = patterns(config, "rank_pattern"), patterns(config, "alpha_pattern")
    r, alpha, rslora = count(config, "r", 8), number(config, "lora_alpha", 8), bool(config.get("use_rslora"))

    def scale(name: str, rank: int) -> float:
        if rank != (want := by_pattern(rank_pattern, name, r)):
            raise refusals.tensor(f"{PREFIX}{name}", f"its factors are of rank {rank}, adapter_config.json says {want}")
        return float(by_pattern(alpha_pattern, name, alpha)) / (math.sqrt(rank) if rslora else rank)

    tensors, in_experts = experts.part(tensors, sites, scale, base.crossed)
    if in_experts and (how or dora):
        raise CommonweightError(
            f"adapter_config.json: experts of a mixture with DoRA, PiSSA or OLoRA are not supported. {refusals.MERGE}"
        )
    for key in (k for k in tensors if k.endswith((_A, _B))):
        name = key.removeprefix(PREFIX).rpartition(".lora_")[0]
        if name in sites and sites[name].kind == "embedding":
            raise refusals.tensor(key, f"this base has no linear layer {name}{WHERE}")
    tensors = shaped.flat(tensors, PREFIX, sites)
    there = () if dora or how else ("conv", "embedding")
    found = split(tensors, (*slots, *_OWN), sites, more=there) if tensors or not in_experts else {}
    trained = any(n in given for given in found.values() for n in _OWN)
    if (biased or trained) and dora:
        raise CommonweightError(
            "adapter_config.json: trained biases (lora_bias=true, bias='lora_only') are not supported for DoRA. "
            f"{refusals.MERGE}"
        )
    whole(found, *slots)
    ranks, alphas, scales, values = {}, {}, {}, {}
    for key, given in found.items():
        s, A, B = sites[key], given[_A], given[_B]
        if _turned(config, key, s, base):
            A, B = B.T.contiguous(), A.T.contiguous()
        known = f"{key}.weight" if _parameter(config, key) else key
        want = by_pattern(rank_pattern, known, r)
        check(f"{PREFIX}{key}.{_A}", A, (want, s.inp), "its rank and the base want")
        check(f"{PREFIX}{key}.{_B}", B, (s.out, want), "its rank and the base want")
        ranks[s.name], alphas[s.name] = want, float(by_pattern(alpha_pattern, known, alpha))
        scales[s.name] = scale(known, want)
        values[f"{s.name}.A"], values[f"{s.name}.B"] = A, B
        if dora:
            check(f"{PREFIX}{key}.{_M}", given[_M], (s.out,))
            values[f"{s.name}.m"] = given[_M]
    for name, low in in_experts.items():
        ranks[name], scales[name] = len(low.A), low.scale
        alphas[name] = low.scale * (math.sqrt(len(low.A)) if rslora else len(low.A))
        values[f"{name}.A"], values[f"{name}.B"] = low.A, low.B
    if biased or trained:
        by_name = {s.name: s for s in sites.values()}
        values |= _biases(found, sites, scales, base)
        values |= {f"{n}.b": torch.zeros(s.out) for n in in_experts if (s := by_name[n]).bias}
    options: dict[str, Any] = {"dropout": float(number(config, "lora_dropout", 0.0))}
    if invocation := _invocation(config):
        shapes = {sites[k].kind for k in found} - {"linear"}
        if dora or how or in_experts or biased or trained or shapes:
            raise refusals.option(_INVOCATION, list(invocation))
        options["invocation"] = invocation
    if len({*scales.values()}) == 1 and not (dora or biased or trained or in_experts or invocation):
        rank, shared = commonest(ranks.values()), commonest(scales.values())
        if how and len({*ranks.values()}) == 1:
            return Adapter(how, {"rank": rank, "alpha": shared * rank}, tuple(ranks), values)
        if config.get("init_lora_weights") == "eva" and all(sites[k].kind == "linear" for k in found):
            won = tuple((s.name, ranks[s.name]) for s in sites.values() if s.name in ranks)  # in the model's order
            begun = {"start": "given", "ranks": won, "rho": _rho(config)}
            return Adapter("eva", {**options, "rank": r, "alpha": shared * r, **begun}, tuple(ranks), values)
    if how is not None:
        ranks, alphas, values = moved.repeated(how, ranks, scales, values, base)
        rslora = False
    rank, alpha = commonest(ranks.values()), commonest(alphas.values())
    options |= {
        "rank": rank,
        "alpha": alpha,
        "rslora": rslora,
        "ranks": others(ranks, rank),
        "alphas": others(alphas, alpha),
        **({"bias": True} if biased or trained else {}),
    }
    return Adapter("dora" if dora else "lora", options, tuple(ranks), values)


def _rho(config: Mapping[str, Any]) -> float:
    """How many times the mean rank a site could win in EVA."""
    given = config.get("eva_config")
    return max(1.0, float(number(given, "rho", 2.0))) if isinstance(given, Mapping) else 2.0


def _invocation(config: Mapping[str, Any]) -> tuple[int, ...]:
    """The tokens from which on it acts; none where it acts everywhere."""
    value = config.get(_INVOCATION) or ()
    if not isinstance(value, list | tuple) or not all(type(t) is int and t >= 0 for t in value):
        raise CommonweightError(f"adapter_config.json: {_INVOCATION} is {value!r}; wanted a list of token ids")
    return tuple(value)


def _is_stray(key: str, tensors: Mapping[str, Tensor]) -> bool:
    """Whether it is the trained bias of a layer that has no factors."""
    layer = key.removesuffix(".bias").removesuffix(".base_layer")
    return key.endswith(".bias") and not key.endswith(_BIAS) and f"{layer}.{_A}" not in tensors


def _turned(config: Mapping[str, Any], key: str, site: Site, base: Frozen) -> bool:
    """Whether B A is a change of the weight as the model keeps it, (inp, out): of target_parameters on a Conv1D."""
    return _parameter(config, key) and base.transposed(site.name)


def _parameter(config: Mapping[str, Any], key: str) -> bool:
    """Whether target_parameters name a layer's weight, which PEFT's patterns then call by the parameter's name."""
    named = config.get("target_parameters") or ()
    if isinstance(named, str) or not isinstance(named, list | tuple | set):
        return False
    return any(isinstance(n, str) and f".{key}.weight".endswith(f".{n}") for n in named)


def _biases(
    found: Mapping[str, Mapping[str, Tensor]], sites: Mapping[str, Site], scales: Mapping[str, float], base: Frozen
) -> dict[str, Tensor]:
    """What every site's bias gains; zero where a layer's bias was not trained."""
    out = {}
    for key, given in found.items():
        s, added = sites[key], given.get(_BIAS)
        own = next((given[n] for n in _OWN if n in given), None)
        for name, b in ((_BIAS, added), (_OWN[0], own)):
            if b is not None:
                check(f"{PREFIX}{key}.{name}", b, (s.out,))
        if s.bias:
            out[f"{s.name}.b"] = torch.zeros(s.out) if added is None else added * scales[s.name]
            if own is not None:
                out[f"{s.name}.b"] += own - base.bias(s.name).cpu()
        elif added is not None and added.any():
            raise refusals.tensor(
                f"{PREFIX}{key}.{_BIAS}",
                "the layer has no bias that it could change (lora_bias=true). Serve it with PEFT, which cannot merge "
                "it either; or train it again without lora_bias",
            )
    return out


def write(subject: Subject) -> Native:
    """LoRA, DoRA, EVA, PiSSA, OLoRA and LoRA-FA as they are. The scale of each site becomes alpha = scale * rank."""
    dora, ours = subject.method == "dora", subject.config
    tensors, ranks, alphas = {}, {}, {}
    biased = getattr(ours, "bias", False)
    for use in subject.plan.uses:
        if isinstance(use.bind, BiasShift):
            continue
        A, B = (use.reads[k].address(*(subject.pools[p] for p in use.reads[k].pools)) for k in "AB")
        scale = use.bind.low.scale if isinstance(use.bind, Activated) else use.bind.scale
        tensors[f"{use.site}.{_A}"], tensors[f"{use.site}.{_B}"] = A, B
        if dora:
            tensors[f"{use.site}.{_M}"] = subject.pool(use.site, "m")
        if biased:  # PEFT asks for one at every layer, and scales it as it scales B A x
            own = subject.pools.get(f"{use.site}.b")
            tensors[f"{use.site}.{_BIAS}"] = B.new_zeros(B.shape[0]) if own is None else own / scale
        ranks[use.site], alphas[use.site] = A.shape[0], scale * A.shape[0]
    rank, alpha = commonest(ranks.values()), commonest(alphas.values())
    if subject.method == "eva":
        rank, alpha = ours.rank, alpha * ours.rank / next(ranks[n] for n, a in alphas.items() if a == alpha)
    config = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": int(alpha) if float(alpha).is_integer() else alpha,
        "rank_pattern": {exactly(subject.short(n)): r for n, r in others(ranks, rank)},
        "alpha_pattern": {exactly(subject.short(n)): a for n, a in others(alphas, alpha)},
        "lora_dropout": getattr(ours, "dropout", 0.0),
        "init_lora_weights": subject.method if subject.method in STARTS else True,
        "use_dora": dora,
        "use_rslora": False,
        "bias": "none",
        "lora_bias": biased,
    }
    if subject.method == "eva":
        config["eva_config"] = {"rho": ours.rho}
    if invocation := getattr(ours, "invocation", ()):
        config |= {_INVOCATION: list(invocation), "task_type": "CAUSAL_LM"}
    return Native(config, tensors)
