"""Low-rank changes as mlx-lm's folder."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from ...core import CommonweightError
from ..changes import Change
from .names import name_of

_LAYER = re.compile(r"(.*?)\.(\d+)\.(.+)")


def write(changes: Mapping[str, Change], layers: int, dropout: float = 0.0, model_type: str = "") -> dict[str, bytes]:
    """File name -> bytes, for `mlx_lm.tuner.utils.load_adapters`. changes: by the model's own names, as on the hub.

    layers: how many the model has. mlx-lm has one rank and one scale for all layers, and looks at the shapes: smaller
    factors are filled with zeros, and the scale is in b. It makes the same modules in every layer; those that are not
    in the file start as the base. Experts of a mixture stay (E, r, inp) and (E, out, r), as its `LoRASwitchLinear` has
    them.
    """
    dora = any(c.m is not None for c in changes.values())
    if dora and not all(c.m is not None for c in changes.values()):
        raise CommonweightError("mlx: DoRA at some layers and LoRA at others has no place in one folder; keep it here")
    if name := next((n for n, c in changes.items() if c.bias is not None), None):
        raise CommonweightError(f"{name}: the tenant changes its bias, which mlx-lm's LoRA cannot; use PEFT's format")
    rank = max(c.A.shape[-2] for c in changes.values() if c.A is not None)
    tensors: dict[str, Tensor] = {}
    keys: set[str] = set()
    for module, c in changes.items():
        name = name_of(module, model_type)
        assert c.A is not None and c.B is not None
        found = _LAYER.fullmatch(name)
        keys.add(found[3] if found else name)
        tensors[f"{name}.lora_a"] = _laid(_wide(c.A, rank, -2))
        tensors[f"{name}.lora_b"] = _laid(_wide(c.B * c.scale, rank, -1))
        if c.m is not None:
            tensors[f"{name}.m"] = c.m.contiguous()
    config: dict[str, Any] = {
        "fine_tune_type": "dora" if dora else "lora",
        "num_layers": layers,
        "lora_parameters": {"rank": rank, "scale": 1.0, "dropout": dropout, "keys": sorted(keys)},
    }
    plain = {k: v.detach().cpu().float() for k, v in tensors.items()}
    return {
        "adapter_config.json": json.dumps(config, indent=4, sort_keys=True).encode(),
        "adapters.safetensors": save(plain, {"format": "mlx"}),
    }


def _laid(factor: Tensor) -> Tensor:
    """In memory of its own: the other way round of one layer, as it is of all experts."""
    return factor.mT.contiguous() if factor.dim() == 2 else factor.contiguous().clone()


def _wide(factor: Tensor, rank: int, at: int) -> Tensor:
    """With zeros up to the rank, along one of its sides."""
    shape = list(factor.shape)
    shape[at] = rank - shape[at]
    return factor if not shape[at] else torch.cat([factor, factor.new_zeros(shape)], at)
