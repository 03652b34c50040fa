"""PEFT's adapter folder on disk: adapter_config.json beside adapter_model.safetensors."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from ...core import CommonweightError
from ..atomic import sync

CONFIG, TENSORS, PICKLE, REPORT = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin", "report.json"


def read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(config, tensors by key) of a folder, floating tensors in float32. Nothing is unpickled.

    Raises: CommonweightError for a missing, damaged or pickled file and for NaN, naming the file or the key.
    """
    if not folder.is_dir():
        raise CommonweightError(f"{folder}: no such folder; wanted one with {CONFIG} and {TENSORS}")
    if not (folder / CONFIG).is_file():
        raise CommonweightError(f"{folder}: has no {CONFIG}; it is not a PEFT adapter folder")
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as e:
        raise CommonweightError(f"{folder / CONFIG}: not a whole JSON file ({e})") from e
    if not isinstance(config, dict) or not isinstance(config.get("peft_type"), str):
        raise CommonweightError(f"{folder / CONFIG}: names no peft_type; wanted what PEFT's save_pretrained writes")
    path = folder / TENSORS
    if not path.is_file():
        if (folder / PICKLE).is_file():
            raise CommonweightError(
                f"{folder / PICKLE}: a pickle can run any code, it is not read; "
                "load it in PEFT and save_pretrained(..., safe_serialization=True)"
            )
        raise CommonweightError(f"{folder}: has no {TENSORS}")
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError, ValueError) as e:
        raise CommonweightError(f"{path}: not a whole safetensors file ({e})") from e
    for key, value in tensors.items():
        if value.is_floating_point():
            value = tensors[key] = value.float()
            masked = "vblora_logits" in key  # -inf there means: never chosen
            if value.isnan().any() or (not masked and value.isinf().any()):
                raise CommonweightError(f"{path}: {key} holds NaN or infinity; it cannot be used")
    return config, tensors


def write(
    folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor], report: Mapping[str, Any], overwrite: bool
) -> Path:
    """Writes the whole folder under a temporary name beside it, then renames it into place.

    Raises: CommonweightError when the target exists and is not empty, unless `overwrite`.
    """
    given, folder = folder, Path(os.path.realpath(folder))
    if folder.exists() and not folder.is_dir():
        raise CommonweightError(f"{folder} is a file; wanted the name of a folder")
    full = folder.is_dir() and any(folder.iterdir())
    if full and not overwrite:
        raise CommonweightError(f"{folder} is not empty; choose another folder, or give overwrite=True")
    if full and not (folder / CONFIG).is_file():
        raise CommonweightError(f"{folder}: not empty and no adapter folder; it is not replaced, choose another")
    if not folder.parent.is_dir():
        raise CommonweightError(f"{folder}: the folder {folder.parent} does not exist; make it first")
    plain = {k: v.detach().cpu().to(copy=True, memory_format=torch.contiguous_format) for k, v in tensors.items()}
    files = {
        CONFIG: json.dumps(config, indent=2, sort_keys=True).encode(),
        TENSORS: save(plain, {"format": "pt"}),
        REPORT: json.dumps(report, indent=2, sort_keys=True).encode(),
    }
    old = None
    try:
        new = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as e:
        raise CommonweightError(f"{folder}: cannot write in {folder.parent}: {e.strerror}") from e
    try:
        for name, data in files.items():
            with open(new / name, "wb") as f:
                f.write(data)
                f.flush()
                os.fsync(f.fileno())
        sync(new)
        os.chmod(new, 0o755)
        if full:  # a folder that is not empty cannot be replaced in one step: it is moved aside first
            old = new.with_name(f"{new.name}.old")
            os.replace(folder, old)
        elif folder.is_dir():
            folder.rmdir()
        os.replace(new, folder)
    except BaseException as e:
        if old is not None and not folder.exists():
            os.replace(old, folder)
        shutil.rmtree(new, ignore_errors=True)
        if isinstance(e, OSError):
            raise CommonweightError(f"{folder}: {e.strerror}; nothing was written") from e
        raise
    if old is not None:
        shutil.rmtree(old, ignore_errors=True)
    sync(folder.parent)
    return given
