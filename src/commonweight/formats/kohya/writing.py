"""Low-rank changes of one model of a pipeline, in the keys of diffusers and of kohya's scripts.

Layouts: loaders/peft.py and loaders/lora_base.py of diffusers 0.42.1; networks/lora.py of kohya's sd-scripts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from safetensors.torch import save
from torch import Tensor

from ...core import CommonweightError
from ..changes import Change
from ..pairs import commonest
from ..peft.common import exactly
from .joining import KINDS

PARTS = {
    "diffusers": re.compile(r"unet|transformer(_\d)?|text_encoder(_\d)?|prior"),
    "kohya": re.compile(r"unet|te\d?|prior_unet|prior_te"),
}


def part_of(kind: str, format: str) -> str | None:
    """What a format calls a model of this class: ``unet``, ``transformer``, ``text_encoder`` or ``te``; None for one
    that it has no word for."""
    if kind.startswith("UNet"):
        return "unet"
    if kind.startswith("CLIPText"):
        return {"diffusers": "text_encoder", "kohya": "te"}[format]
    if format == "kohya":
        return "unet" if kind in KINDS else None
    return "prior" if kind == "PriorTransformer" else "transformer" if "Transformer" in kind else None


def diffusers(changes: Mapping[str, Change], part: str, kernels: Mapping[str, tuple[int, ...]]) -> bytes:
    """For `load_lora_weights` of a pipeline, and `load_lora_adapter(..., prefix=part)` of a model.

    changes: by the model's own names, in factors. kernels: of the convolutions. The scale is in B, so that alpha is the
    rank everywhere: readers that leave out the file's metadata, as ComfyUI does, get the same change.
    """
    tensors: dict[str, Tensor] = {}
    biased = any(c.bias is not None for c in changes.values())
    ranks = {}
    for name, c in changes.items():
        A, B = _factors(c, kernels.get(name, ()))
        key = f"{part}.{name}"
        ranks[name] = len(A)
        tensors[f"{key}.lora_A.weight"], tensors[f"{key}.lora_B.weight"] = A, B
        if biased:
            tensors[f"{key}.lora_B.bias"] = B.new_zeros(len(B)) if c.bias is None else c.bias
        if c.m is not None:
            tensors[f"{key}.lora_magnitude_vector"] = c.m
    rank = commonest(ranks.values())
    pattern = {exactly(n): r for n, r in ranks.items() if r != rank}
    config: dict[str, Any] = {
        "r": rank, "lora_alpha": rank, "rank_pattern": pattern, "alpha_pattern": dict(pattern),
        "target_modules": sorted(changes), "lora_bias": biased, "bias": "none",
        "use_dora": any(c.m is not None for c in changes.values()),
    }  # fmt: skip
    about = json.dumps({f"{part}.{k}": v for k, v in config.items()}, indent=2, sort_keys=True)
    return save(_plain(tensors), {"format": "pt", "lora_adapter_metadata": about})


def kohya(
    changes: Mapping[str, Change], part: str, kernels: Mapping[str, tuple[int, ...]], named: Callable[[str], str] = str
) -> bytes:
    """For kohya's scripts, ComfyUI and the web interfaces. named: what they call a module, whose name has underscores.

    Raises: CommonweightError for a bias, of which these files have none.
    """
    tensors: dict[str, Tensor] = {}
    for name, c in changes.items():
        if c.bias is not None:
            raise CommonweightError(f"{name}: the tenant changes its bias, which kohya's LoRA cannot; use diffusers")
        A, B = _factors(c, kernels.get(name, ()))
        key = f"lora_{part}_{named(name.replace('.', '_'))}"
        tensors[f"{key}.lora_down.weight"], tensors[f"{key}.lora_up.weight"] = A, B
        tensors[f"{key}.alpha"] = A.new_tensor(float(len(A)))
        if c.m is not None:
            tensors[f"{key}.dora_scale"] = c.m[:, None]
    return save(_plain(tensors), {"format": "pt"})


def _factors(c: Change, kernel: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """(A, B) at scale 1; of a convolution (r, inp, *kernel) and (out, r, 1, ...)."""
    assert c.A is not None and c.B is not None
    A, B = c.A, c.B * c.scale
    return (A.unflatten(1, (-1, *kernel)), B[(..., *(None for _ in kernel))]) if kernel else (A, B)


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k: v.detach().cpu().float().contiguous().clone() for k, v in tensors.items()}
