"""Changed biases in PEFT's files: beside a layer's factors (lora_bias), or as the layer's own (bias="lora_only")."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..adapter import Frozen
from .common import by_pattern, short

BESIDE, OWN = "lora_B.bias", "base_layer.bias"


def as_own(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor], base: Frozen, prefix: str
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The same change with biases of the layers themselves, as bias="lora_only" has them.

    Keys are names of sites, without PEFT's prefix. For files with parameters (target_parameters) or tables of
    embeddings, beside which PEFT takes no lora_bias. Such biases hold for the whole model in PEFT: they stay when its
    adapter is switched off.
    """
    out = {}
    for key, value in tensors.items():
        name = key.removesuffix(f".{BESIDE}")
        if name == key:
            out[key] = value
        elif value.any():
            known = short(name, prefix)
            alpha = by_pattern(config.get("alpha_pattern") or {}, known, config["lora_alpha"])
            scale = alpha / by_pattern(config.get("rank_pattern") or {}, known, config["r"])
            out[f"{name}.{OWN}"] = base.bias(name).cpu() + scale * value
    return {**config, "lora_bias": False, "bias": "lora_only"}, out
