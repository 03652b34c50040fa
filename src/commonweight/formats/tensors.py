"""Tensors of other tools' files: read whole, in float32, looked at. Nothing is unpickled."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..core import CommonweightError
from .damaged import not_whole


def read(path: Path) -> dict[str, Tensor]:
    """Every tensor of a safetensors file; floating ones in float32.

    Raises: CommonweightError for a file that is damaged, and for complex numbers, NaN and infinity, naming the key.
    """
    try:
        with safe_open(path, "pt") as f:
            tensors = {k: f.get_tensor(k) for k in f.keys()}
    except (SafetensorError, OSError, ValueError, KeyError) as e:
        raise not_whole(path, e) from e
    return {k: looked_at(f"{path}: {k}", v) for k, v in tensors.items()}


def looked_at(where: str, value: Tensor) -> Tensor:
    """One tensor in float32. Raises: CommonweightError where it is no matrix of numbers that can be used."""
    if value.is_complex() or value.dtype is torch.bool:
        raise CommonweightError(f"{where} is of {value.dtype}; wanted floating numbers")
    if not value.is_floating_point():
        return value
    value = value.float()
    if not value.isfinite().all():
        raise CommonweightError(f"{where} holds NaN or infinity; it cannot be used")
    return value


def parts(tensors: Mapping[str, Tensor], slots: tuple[str, ...]) -> tuple[dict[str, dict[str, Tensor]], list[str]]:
    """({module: {slot: tensor}}, keys that end in none of the slots). Of two slots that fit, the first."""
    out: dict[str, dict[str, Tensor]] = {}
    rest = []
    for key, value in tensors.items():
        slot = next((s for s in slots if key.endswith(f".{s}")), None)
        if slot is None:
            rest.append(key)
        else:
            out.setdefault(key[: -len(slot) - 1], {})[slot] = value
    return out, rest


def pair(module: str, A: Tensor | None, B: Tensor | None) -> tuple[Tensor, Tensor]:
    """Both factors, A (r, inp) and B (out, r). Raises: CommonweightError where one is missing or they do not fit."""
    if A is None or B is None:
        raise CommonweightError(f"{module}: has one factor of two; the file is not whole, copy or export it again")
    if A.dim() != 2 or B.dim() != 2 or len(A) != B.shape[1] or not len(A):
        raise CommonweightError(
            f"{module}: factors of {tuple(A.shape)} and {tuple(B.shape)} are not a low-rank change of a linear layer"
        )
    return A, B
