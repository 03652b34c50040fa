"""Where tensors come from: a state dict in memory, or safetensors on disk, read one tensor at a time."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ..core import CommonweightError


class Source:
    """A model by its tensors' names. label: how errors call it."""

    def __init__(self, label: str, shapes: Mapping[str, tuple[int, ...]], dtypes: Mapping[str, torch.dtype], read: Any):
        self.label, self.shapes, self.dtypes, self.read = label, shapes, dtypes, read


def open_source(model: Any, label: str) -> Source:
    """A state dict, a module, a safetensors file, or a folder with one or more of them."""
    if isinstance(model, nn.Module):
        model = model.state_dict()
    if isinstance(model, Mapping):
        for name, t in model.items():
            if not isinstance(t, Tensor):
                raise CommonweightError(f"{label}: {name} is a {type(t).__name__}; wanted a tensor")
        return Source(
            label,
            {n: tuple(t.shape) for n, t in model.items()},
            {n: t.dtype for n, t in model.items()},
            model.__getitem__,
        )
    if isinstance(model, str | Path):
        return _files(Path(model), f"{label} ({model})")
    raise CommonweightError(
        f"{label} is a {type(model).__name__}; wanted a state dict, a module, or a path to safetensors"
    )


def _files(path: Path, label: str) -> Source:
    if not path.exists():
        raise CommonweightError(f"{label}: no such file or folder")
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    if not files:
        raise CommonweightError(
            f"{label}: no safetensors file in this folder; convert the weights to safetensors first"
        )
    home, shapes, dtypes = {}, {}, {}
    for file in files:
        try:
            with safe_open(file, "pt") as f:
                for name in f.keys():
                    if name in home:
                        raise CommonweightError(f"{label}: {name} is in {home[name].name} and in {file.name}")
                    part = f.get_slice(name)
                    home[name], shapes[name] = file, tuple(part.get_shape())
                    dtypes[name] = f.get_tensor(name).dtype if not shapes[name] else part[:0].dtype
        except SafetensorError as e:
            raise CommonweightError(f"{label}: {file.name} is damaged or no safetensors file: {e}") from e

    def read(name: str) -> Tensor:
        with safe_open(home[name], "pt") as f:
            return f.get_tensor(name)

    return Source(label, shapes, dtypes, read)
