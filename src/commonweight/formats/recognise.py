"""Which tool wrote a file or a folder: told by what is in it, never by its name alone."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..core import CommonweightError, counted
from ..core.readable import CONFIG_BYTES, read_object
from .damaged import known

FORMATS = {
    "commonweight": "a tenant's own file",
    "peft": "PEFT's folder",
    "mlx": "mlx-lm's folder",
    "kohya": "LoRA files of kohya's scripts, LyCORIS and diffusers",
    "gguf": "llama.cpp's LoRA file",
    "torchtune": "torchtune's adapter checkpoint",
}
_CONFIG = "adapter_config.json"
_KOHYA = "lora_unet_", "lora_te", "lora_transformer_", "lora_prior_", "lycoris_"
_DIFFUSERS = "unet.", "text_encoder.", "text_encoder_2.", "text_encoder_3.", "transformer.", "diffusion_model."


def recognise(path: Path) -> tuple[str, Path]:
    """(format, the file or folder to read): a file that lies in an adapter's folder stands for the folder.

    Raises: CommonweightError where nothing is known, and for a folder with several, naming them.
    """
    if path.is_dir():
        return _folder(path)
    if not path.is_file():
        raise CommonweightError(f"{path}: no such file or folder; wanted an adapter")
    found = _file(path)
    if found is None:
        if _header(path) is None:
            whole = "not a whole safetensors file; copy it again" if path.suffix == ".safetensors" else None
            if said := known(path) or whole:
                raise CommonweightError(f"{path}: {said}")
        raise CommonweightError(
            f"{path}: not an adapter that is known here; read are {', '.join(f'{k} ({v})' for k, v in FORMATS.items())}"
        )
    return found


def _folder(folder: Path) -> tuple[str, Path]:
    if (folder / _CONFIG).is_file():
        kind = _config(read_object(folder / _CONFIG, CONFIG_BYTES))
        pickled = [p for p in sorted(folder.glob("adapter_*.pt")) if _magic(p) == "zip"]
        if kind == "peft" and pickled and not list(folder.glob("adapter_model.*[!t]")):
            return "torchtune", pickled[-1]
        if kind is not None:
            return kind, folder
        raise CommonweightError(f"{folder / _CONFIG}: names neither a peft_type nor lora_parameters; not an adapter's")
    if folder.name.startswith("models--") and (folder / "snapshots").is_dir():
        return "peft", folder
    found = {p: f for p in sorted(folder.iterdir()) if p.is_file() and (f := _file(p)) is not None}
    if len(found) != 1:
        what = f"no {_CONFIG} and no adapter's file in it; wanted an adapter"
        if found:
            what = f"holds {counted(len(found), 'adapter')} ({', '.join(p.name for p in [*found][:5])}); name one"
        raise CommonweightError(f"{folder}: {what}")
    return next(iter(found.values()))


def _config(config: dict[str, Any]) -> str | None:
    if isinstance(config.get("peft_type"), str):
        return "peft"
    return "mlx" if {"lora_parameters", "fine_tune_type"} & config.keys() else None


def _file(path: Path) -> tuple[str, Path] | None:
    magic = _magic(path)
    if magic == "gguf":
        return "gguf", path
    if magic == "zip":
        return "torchtune", path
    header = _header(path) if magic is None else None
    if header is None:
        return None
    about = header.get("__metadata__")
    if isinstance(about, dict) and "commonweight" in about:
        return "commonweight", path
    keys = [k for k in header if k != "__metadata__"]
    beside = path.parent / _CONFIG
    kind = _config(read_object(beside, CONFIG_BYTES)) if beside.is_file() else None
    if kind is not None and _ends(keys, ".lora_a", ".lora_b") == (kind == "mlx"):
        return kind, path.parent
    if _ends(keys, ".lora_a.weight", ".lora_b.weight"):
        return "torchtune", path
    if _ends(keys, ".lora_a", ".lora_b"):
        raise CommonweightError(f"{path}: an adapter of mlx-lm without its {_CONFIG}, which has the scale; copy it too")
    if any(k.startswith((*_KOHYA, *_DIFFUSERS)) for k in keys):
        return "kohya", path
    if isinstance(about, dict) and "lora_adapter_metadata" in about:
        return "kohya", path
    if any(".lora_A." in k for k in keys):
        raise CommonweightError(
            f"{path}: an adapter of PEFT without its {_CONFIG}, which has the scale; copy it too. Of a model of "
            "diffusers, whose files have none and a scale of 1, say format='kohya'"
        )
    return None


def _ends(keys: Iterable[str], *ends: str) -> bool:
    return any(k.endswith(ends) for k in keys)


def _magic(path: Path) -> str | None:
    try:
        with open(path, "rb") as f:
            first = f.read(4)
    except OSError:
        return "none"
    return "gguf" if first == b"GGUF" else "zip" if first == b"PK\x03\x04" else None


def _header(path: Path) -> dict[str, Any] | None:
    """The header of a safetensors file; None where it is none."""
    size = path.stat().st_size
    try:
        with open(path, "rb") as f:
            n = int.from_bytes(f.read(8), "little")
            if not 2 <= n <= size - 8:
                return None
            if f.read(1) != b"{":
                return None
            header = json.loads(b"{" + f.read(n - 1))
    except (OSError, ValueError, RecursionError):
        return None
    return header if isinstance(header, dict) else None
