"""A shared model from PEFT's two folders: a stock base, and an adapter with layer_replication."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..core import CommonweightError


def folder_of(path: Path) -> Path | None:
    """The adapter's folder, where the path is one that repeats layers, or holds one; else None."""
    for here in (path, path / "adapter"):
        if replication(here):
            return here
    return None


def replication(folder: Path) -> list[list[int]]:
    try:
        told = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return told.get("layer_replication") or [] if isinstance(told, dict) else []


def base_of(folder: Path) -> str:
    """The folder, or the name, of the base: the one that lies beside the adapter, else what it says."""
    beside = folder.parent / "base"
    told = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    return str(beside) if beside.is_dir() else told["base_model_name_or_path"]


def load(folder: Path, auto: Any, **options: Any) -> Any:
    """The tied tree with each depth's update and norms. Raises: CommonweightError for an adapter of another shape."""
    import torch
    from safetensors import safe_open

    from .dissect import Weight, anatomy
    from .layout import Unit, relaxed, tied
    from .tree import build

    told = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    base = auto.from_pretrained(base_of(folder), **options)
    like = [layer for first, last in replication(folder) for layer in range(first, last)]
    norms, ranks = set(told.get("modules_to_save") or ()), told.get("rank_pattern") or {}
    scale = told["lora_alpha"] / told["r"]
    if scale != 1 or any((told.get("alpha_pattern") or {}).get(k, v) != v for k, v in ranks.items()):
        raise CommonweightError(f"{folder}: its updates have a scale other than 1; load it with peft")
    about = anatomy(base)

    def unit(at: int, w: Weight) -> Unit | None:
        private = any(w.module == n or w.module.endswith(f".{n}") for n in norms)
        return None if private else Unit(f"layer{like[at]}", (like[at],))

    targets = set(told["target_modules"])
    layout = tied(about, like, unit)
    by_rank = {r: {t for t in targets if ranks.get(t, told["r"]) == r} for r in {told["r"], *ranks.values()}}
    for rank, some in by_rank.items():
        layout = relaxed(layout, about, rank, "zero", lambda at, w, some=some: w.module in some)
    small = build(base, layout)
    blocks = small.get_submodule(about.path)
    with safe_open(folder / "adapter_model.safetensors", "pt") as f, torch.no_grad():
        for key in f.keys():
            name = key.removeprefix(f"base_model.model.{about.path}.")
            name = name.replace(".lora_A.weight", ".A").replace(".lora_B.weight", ".B")
            blocks.get_parameter(name).copy_(f.get_tensor(key))
    return small
