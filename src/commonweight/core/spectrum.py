"""Singular vectors whose signs, which are free, are the same on every machine."""

from __future__ import annotations

import torch
from torch import Tensor


def turned(v: Tensor) -> Tensor:
    """Vectors in rows, whose signs are free, with the largest entry of each above zero."""
    return v * _signs(v)


def svd(w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """U (out, k), S (k,), V^T (k, in) of a weight, the largest entry of each row of V^T above zero."""
    u, s, v = torch.linalg.svd(w, full_matrices=False)
    return u * _signs(v).T, s, turned(v)


def _signs(v: Tensor) -> Tensor:
    return v.gather(1, v.abs().argmax(1, keepdim=True)).sign()
