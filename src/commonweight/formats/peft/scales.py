"""The methods that only scale or turn outputs and gains: (IA)3, RoAd, LayerNorm tuning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ...core import CommonweightError, Site
from ..adapter import Adapter, Frozen
from .common import PREFIX, Native, Subject, check, count, split, understood, whole

_L, _THETA, _ALPHA = "ia3_l", "road_theta", "road_alpha"
_GAIN, _BIAS = "ln_tuning_layers.weight", "ln_tuning_layers.bias"


def read_ia3(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor], sites: Mapping[str, Site], base: Frozen
) -> Adapter:
    """l (1, d_in) where the input is scaled (feedforward_modules), (d_out, 1) where the output is."""
    understood(config, "feedforward_modules", "init_ia3_weights")
    values, inward = {}, []
    for key, given in split(tensors, (_L,), sites).items():
        s, value = sites[key], given[_L]
        if tuple(value.shape) == (1, s.inp):
            inward.append(s.name)
        else:
            check(f"{PREFIX}{key}.{_L}", value, (s.out, 1))
        values[f"{s.name}.l"] = value.flatten()
    return Adapter("ia3", {"inputs": "|".join(inward)}, tuple(n.removesuffix(".l") for n in values), values)


def write_ia3(subject: Subject) -> Native:
    tensors, inward = {}, []
    for use in subject.plan.uses:
        value = subject.pool(use.site, "l")
        if hasattr(use.bind, "output"):
            tensors[f"{use.site}.{_L}"] = value[:, None]
        else:
            tensors[f"{use.site}.{_L}"] = value[None]
            inward.append(subject.short(use.site))
    # PEFT compares the two lists as strings: both hold whole names
    targets = sorted(subject.short(n) for n in subject.sites)
    return Native({"peft_type": "IA3", "target_modules": targets, "feedforward_modules": inward}, tensors)


def read_road(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor], sites: Mapping[str, Site], base: Frozen
) -> Adapter:
    """theta and alpha (k d_out / 2,), k the number in the variant's name; pairs are laid as ours are."""
    understood(config, "variant", "group_size")
    variant, found = config.get("variant", "road_1"), split(tensors, (_THETA, _ALPHA), sites)
    if variant not in ("road_1", "road_2", "road_4"):
        raise CommonweightError(f"adapter_config.json: variant is {variant!r}; wanted road_1, road_2 or road_4")
    whole(found, _THETA, _ALPHA)
    values = {}
    for key, given in found.items():
        s = sites[key]
        for slot, peft in (("theta", _THETA), ("alpha", _ALPHA)):
            check(f"{PREFIX}{key}.{peft}", given[peft], (int(variant[-1]) * s.out // 2,))
            values[f"{s.name}.{slot}"] = given[peft]
    options = {"variant": variant, "group_size": count(config, "group_size", 64)}
    return Adapter("road", options, tuple(sites[k].name for k in found), values)


def write_road(subject: Subject) -> Native:
    tensors = {}
    for name in subject.sites:
        tensors[f"{name}.{_THETA}"], tensors[f"{name}.{_ALPHA}"] = (
            subject.pool(name, "theta"),
            subject.pool(name, "alpha"),
        )
    config = {"peft_type": "ROAD", "variant": subject.config.variant, "group_size": subject.config.group_size}
    return Native(config, tensors)


def read_norms(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor], sites: Mapping[str, Site], base: Frozen
) -> Adapter:
    """PEFT keeps whole gains and biases (d,), we keep what they gained over the base's."""
    understood(config)
    found = split(tensors, (_GAIN, _BIAS), sites, kind="norm")
    values = {}
    for key, given in found.items():
        s = sites[key]
        for slot, peft, old in (("dw", _GAIN, base.weight), *([("db", _BIAS, base.bias)] if s.bias else [])):
            whole({key: given}, peft)
            check(f"{PREFIX}{key}.{peft}", given[peft], (s.out,))
            values[f"{s.name}.{slot}"] = given[peft] - old(s.name).cpu()
    return Adapter("lntuning", {}, tuple(sites[k].name for k in found), values)


def write_norms(subject: Subject) -> Native:
    tensors = {}
    for name, site in subject.sites.items():
        tensors[f"{name}.{_GAIN}"] = subject.base.weight(name).cpu() + subject.pool(name, "dw")
        if site.bias:
            tensors[f"{name}.{_BIAS}"] = subject.base.bias(name).cpu() + subject.pool(name, "db")
    return Native({"peft_type": "LN_TUNING"}, tensors)
