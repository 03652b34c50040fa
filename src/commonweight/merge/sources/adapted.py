"""A model with a LoRA adapter of PEFT on it, as one source: its rows are made as they are read."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...core import CommonweightError
from ...formats.peft import PREFIX
from ...formats.peft.common import understood
from ...formats.peft.folder import CONFIG
from ...formats.peft.lora import _MOVES_THE_BASE
from .factored import product
from .source import Files, Source
from .tenanted import names_in, turned

_FACTOR = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")
# Beside what is harmless in any PEFT config: what is read here, how factors were first filled (of a base that moved,
# init_lora_weights tells), and what puts tensors beside the factors, which are refused by name.
_KNOWN = (
    "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "lora_dropout", "init_lora_weights",
    "corda_config", "eva_config", "loftq_config", "lora_ga_config", "bias", "modules_to_save",
)  # fmt: skip


class Adapted:
    """W + scale B A, in float32 wherever the adapter has its factors; memory: the rows' update, beside the factors.

    A module may have one name more in front than the checkpoint's weight, or less, as where the file is of the body.
    Which way a weight lies (GPT-2's lie as (inp, out)) is told by the model, as in PEFT.
    """

    def __init__(self, label: str, base: Source, folder: Path):
        self.label = label
        self._base = base
        weights = folder / "adapter_model.safetensors"
        if not weights.is_file():
            raise CommonweightError(f"{label}: {weights.name} is missing; save the adapter as safetensors")
        self._factors = Files(label, [weights])
        self.files = (*base.files, weights)
        self.kept: Mapping[str, torch.dtype] = getattr(base, "kept", base.dtypes)  # those of the model that it changes
        scales = module_scales(label, folder / CONFIG, self._factors)
        self._modules = {w: m for m, w in names_in(label, base, set(scales)).items()}
        self._scales = {w: scales[m] for w, m in self._modules.items()}
        self._turned = turned(base)
        for name in self._scales:
            b, a = self._shape(name, "B"), self._shape(name, "A")
            shape = (a[1], b[0]) if name in self._turned else (b[0], a[1])
            if base.shapes[name] != shape or a[0] != b[1]:
                raise CommonweightError(
                    f"{name}: {label} adapts a weight of shape {shape}, {base.label} has {base.shapes[name]}"
                )
        self.shapes: Mapping[str, tuple[int, ...]] = base.shapes
        self.dtypes: Mapping[str, torch.dtype] = {**base.dtypes, **dict.fromkeys(self._scales, torch.float32)}

    def flat(self, name: str, start: int, count: int) -> Tensor:
        raw = self._base.flat(name, start, count)
        if name not in self._scales:
            return raw
        left, right = (self._factors.read(self._name(name, f)).float() for f in "BA")
        if name in self._turned:
            left, right = right.T, left.T
        return raw.float() + product(left, right, start, count).mul_(self._scales[name])

    def read(self, name: str) -> Tensor:
        return self.flat(name, 0, math.prod(self.shapes[name])).view(self.shapes[name])

    def where(self, name: str) -> str:
        return self.label

    def ahead(self, name: str) -> None:
        self._base.ahead(name)

    def _name(self, weight: str, factor: str) -> str:
        return _key(self._modules[weight], factor)

    def _shape(self, name: str, factor: str) -> tuple[int, ...]:
        key = self._name(name, factor)
        if len(self._factors.shapes.get(key, ())) != 2:
            raise CommonweightError(f"{name}: {self.label} has no matrix {key}")
        return self._factors.shapes[key]


def _key(module: str, factor: str) -> str:
    return f"{PREFIX}{module}.lora_{factor}.weight"


def module_scales(label: str, path: Path, factors: Files) -> dict[str, float]:
    """Module -> lora_alpha / rank (its root, if so trained). Raises: CommonweightError for what is no plain LoRA."""
    config = plain_config(label, path)
    out = {}
    for key in factors.shapes:
        found = _FACTOR.fullmatch(key)
        if not found:
            raise CommonweightError(f"{key}: {label} has this beside LoRA's factors; merge it into its model first")
        rank = factors.shapes[_key(found[1], "A")][0] if found[2] == "A" else None
        if rank is not None:
            patterns = (config.get("alpha_pattern") or {}).items()
            alpha = next(
                (v for k, v in patterns if re.fullmatch(rf"(.*\.)?({k})", found[1])), config.get("lora_alpha", 8)
            )
            out[found[1]] = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    return out


def plain_config(label: str, path: Path) -> dict[str, Any]:
    """adapter_config.json, of a LoRA adapter whose update is scale B A and no more."""
    try:
        config: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as e:
        raise CommonweightError(f"{label}: {path.name} cannot be read: {e}") from e
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        kind = config.get("peft_type") if isinstance(config, dict) else "that is not said"
        raise CommonweightError(f"{label}: an adapter of type {kind}; LORA can be merged")
    for key, value in config.items():
        try:
            understood({key: value}, *_KNOWN)
        except CommonweightError as e:
            raise CommonweightError(
                f"{label}: the adapter has {key}, which is not read; merge it into its model first"
            ) from e
    init = config.get("init_lora_weights")
    if isinstance(init, str) and (init in _MOVES_THE_BASE or init.startswith("pissa")):
        raise CommonweightError(
            f"{label}: init_lora_weights={init!r}: its base is another than the model; save it in PEFT with "
            "path_initial_model_for_weight_conversion, which makes it plain LoRA"
        )
    return config
