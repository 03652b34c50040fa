"""A model with a LoRA adapter of PEFT on it, as one source: its rows are made as they are read."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...core import CommonweightError
from ...formats import peft
from ...formats.peft import PREFIX
from ...formats.peft.common import by_pattern, number, patterns, understood
from ...formats.peft.lora import HOW_IT_STARTED
from .factored import product
from .names import names_in, turned
from .source import Files, Source

_FACTOR = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")
# Beside what is harmless in any PEFT config: what is read here, how factors were first filled (of a base that moved,
# init_lora_weights tells), and what puts tensors beside the factors, which are refused by name.
_KNOWN = (
    "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "lora_dropout", "init_lora_weights", "bias",
    "modules_to_save", *HOW_IT_STARTED,
)  # fmt: skip


class Adapted:
    """W + scale B A, in float32 wherever the adapter has its factors; memory: the rows' update, beside the factors.

    A module may have one name more in front than the checkpoint's weight, or less, as where the file is of the body.
    Which way a weight lies (GPT-2's lie as (inp, out)) is told by the model, as in PEFT.
    """

    def __init__(self, label: str, base: Source, folder: Path):
        self.label = label
        self._base = base
        config = plain_config(label, folder)
        weights = folder / peft.folder.TENSORS
        self._factors = Files(label, [weights])
        self.files: tuple[Path, ...] = (*base.files, weights)
        self.kept: Mapping[str, torch.dtype] = getattr(base, "kept", base.dtypes)  # those of the model that it changes
        scales = module_scales(label, config, self._factors)
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


def module_scales(label: str, config: Mapping[str, Any], factors: Files) -> dict[str, float]:
    """Module -> lora_alpha / rank (its root, if so trained). Raises: CommonweightError for what is no plain LoRA."""
    out, alphas, default = {}, patterns(config, "alpha_pattern"), number(config, "lora_alpha", 8)
    for key in factors.shapes:
        found = _FACTOR.fullmatch(key)
        if (plain := peft.keys.plain_key(key)) != key and _FACTOR.fullmatch(plain):
            raise CommonweightError(
                f"{key}: {label} was saved from a wrapped or compiled model; PEFT calls this {plain}. Import it "
                "(Host.import_peft reads such keys) and export it again, or rename its keys"
            )
        if not found:
            raise CommonweightError(f"{key}: {label} has this beside LoRA's factors; merge it into its model first")
        rank = factors.shapes[_key(found[1], "A")][0] if found[2] == "A" else None
        if rank is not None:
            alpha = by_pattern(alphas, found[1], default)
            out[found[1]] = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    return out


def plain_config(label: str, folder: Path) -> dict[str, Any]:
    """adapter_config.json, of a LoRA adapter whose update is scale B A and no more; digests beside it are compared.

    Raises: CommonweightError for another adapter, a pickle in place of the weights, and files that have changed.
    """
    try:
        config = peft.folder.config(folder)
        peft.folder.weights(folder)
        peft.folder.digest.check(folder)
        moved = peft.lora.moved.by(config.get("init_lora_weights")) if config["peft_type"] == "LORA" else None
    except CommonweightError as e:
        raise CommonweightError(f"{label}: {e}") from e
    if config["peft_type"] != "LORA":
        raise CommonweightError(f"{label}: an adapter of type {config['peft_type']}; LORA can be merged")
    for key, value in config.items():
        try:
            understood({key: value}, *_KNOWN)
        except CommonweightError as e:
            raise CommonweightError(
                f"{label}: the adapter has {key}, which is not read; merge it into its model first"
            ) from e
    if moved:
        raise CommonweightError(
            f"{label}: init_lora_weights={moved!r}: its base is another than the model; save it in PEFT with "
            "path_initial_model_for_weight_conversion, which makes it plain LoRA"
        )
    return config
