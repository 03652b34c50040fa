"""A model as a source, whatever it is given as: a state dict, a module, a file, a folder; quantised ones too."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...core import CommonweightError
from .quantised import opened
from .source import Files, Memory, Source, config_of
from .weights import weights_of


def open_source(model: Any, label: str) -> Source:
    """A state dict, a module, a safetensors file, or a folder with one or more of them; quantised ones too.

    Of files only the headers are read, and the config.json that lies with them; of a folder, what transformers loads.
    """
    if isinstance(model, nn.Module):
        model = model.state_dict()
    if isinstance(model, Mapping):
        for name, t in model.items():
            if not isinstance(t, Tensor):
                raise CommonweightError(f"{label}: {name} is a {type(t).__name__}; wanted a tensor")
            if not isinstance(name, str) or t.is_meta or t.layout is not torch.strided:
                kind = "a tensor without numbers (meta)" if t.is_meta else f"a {t.layout} tensor"
                kind = kind if isinstance(name, str) else "named by a " + type(name).__name__
                raise CommonweightError(f"{label}: {name} is {kind}; wanted a name and a plain tensor")
        return _plain(Memory(label, model))
    if isinstance(model, str | Path):
        path, label = Path(model), f"{label} ({model})"
        return _plain(opened(Files(label, *weights_of(path, label)), config_of(path), path))
    raise CommonweightError(
        f"{label} is a {type(model).__name__}; wanted a state dict, a module, or a path to safetensors"
    )


def _plain(source: Source) -> Source:
    """Raises: CommonweightError for float8 with scales in tensors of their own: merged apart, they mean nothing."""
    eighths = {n.rpartition(".")[0]: n for n, d in source.dtypes.items() if d.is_floating_point and d.itemsize == 1}
    for name in source.shapes if eighths else ():
        module, _, leaf = name.rpartition(".")
        if module in eighths and "scale" in leaf:
            raise CommonweightError(
                f"{eighths[module]}: {source.label} has it as float8 with a scale of its own ({name}); save the model "
                "dequantised first"
            )
    return source
