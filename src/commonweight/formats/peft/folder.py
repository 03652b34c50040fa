"""PEFT's adapter folder on disk: adapter_config.json beside adapter_model.safetensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from ...core import CommonweightError
from ...core.readable import CONFIG_BYTES, read_object
from .. import atomic
from ..damaged import known, not_whole
from . import digest

CONFIG, TENSORS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
REPORT = digest.REPORT


def read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(config, tensors by key) of a folder, floating tensors in float32. Nothing is unpickled.

    The digests beside the files are compared first, where there are any. Raises: CommonweightError for a missing,
    damaged or pickled file, for numbers that are none, and for NaN, naming the file or the key.
    """
    given = config(folder)
    path = weights(folder)
    digest.check(folder)
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError) as e:
        raise not_whole(path, e) from e
    for key, value in tensors.items():
        if value.is_complex() or value.dtype is torch.bool:
            raise CommonweightError(f"{path}: {key} is of {value.dtype}; wanted floating numbers")
        if value.is_floating_point():
            value = tensors[key] = value.float()
            masked = "vblora_logits" in key  # -inf there means: never chosen
            if value.isnan().any() or (not masked and value.isinf().any()):
                raise CommonweightError(f"{path}: {key} holds NaN or infinity; it cannot be used")
    return given, tensors


def config(folder: Path) -> dict[str, Any]:
    """adapter_config.json. Raises: CommonweightError for a folder that is none, and a file that is no config."""
    if not folder.is_dir():
        raise CommonweightError(f"{folder}: no such folder; wanted one with {CONFIG} and {TENSORS}")
    path = folder / CONFIG
    if not path.is_file():
        names = sorted(p.parent.name for p in folder.glob(f"*/{CONFIG}"))
        inside = f"; adapters lie in it: {', '.join(names[:5])}. Name one of them" if names else ""
        raise CommonweightError(f"{folder}: has no {CONFIG}; it is not a PEFT adapter folder{inside}")
    given = read_object(path, CONFIG_BYTES)
    if not isinstance(given.get("peft_type"), str):
        raise CommonweightError(f"{path}: names no peft_type; wanted what PEFT's save_pretrained writes")
    return given


def weights(folder: Path) -> Path:
    """adapter_model.safetensors. Raises: CommonweightError for a folder that has none, or a pickle in its place."""
    path, pickled = folder / TENSORS, folder / PICKLE
    if not path.is_file():
        if pickled.is_file():
            raise CommonweightError(f"{pickled}: {known(pickled)}")
        raise CommonweightError(f"{folder}: has no {TENSORS}")
    return path


def write(
    folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor], report: Mapping[str, Any], overwrite: bool
) -> Path:
    """Writes the whole folder in one step. The report gets digests of the two files that PEFT reads.

    Raises: CommonweightError when the target exists and is not empty, unless `overwrite`.
    """
    given, folder = folder, atomic.folder_for(folder, [CONFIG], "adapter folder", overwrite=overwrite)
    atomic.make_folder(folder.parent)
    plain = {k: v.detach().cpu().to(copy=True, memory_format=torch.contiguous_format) for k, v in tensors.items()}
    files = {
        CONFIG: json.dumps(config, indent=2, sort_keys=True).encode(),
        TENSORS: save(plain, {"format": "pt"}),
    }
    told = {**report, digest.KEY: digest.of(files)}
    files[digest.REPORT] = json.dumps(told, indent=2, sort_keys=True).encode()
    atomic.write_folder(folder, files, replace=True)
    return given
