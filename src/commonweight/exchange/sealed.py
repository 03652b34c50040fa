"""Tensors in a file that knows whether it is whole: safetensors with facts, and a digest of both."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

DIGEST = "digest"
WRONG = (SafetensorError, OSError, ValueError, KeyError)  # what reading a damaged file may raise


def digest(tensors: Mapping[str, Tensor], facts: Mapping[str, str]) -> str:
    """16 hex digits of names, shapes, numbers and facts."""
    h = hashlib.blake2b(json.dumps(sorted(facts.items())).encode(), digest_size=8)
    for name, value in sorted(tensors.items()):
        h.update(json.dumps([name, str(value.dtype), list(value.shape)]).encode())
        h.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return h.hexdigest()


def sealed(tensors: Mapping[str, Tensor], facts: Mapping[str, str] = {}) -> bytes:
    whole = {k: v.contiguous() for k, v in tensors.items()}
    return save(whole, {**facts, DIGEST: digest(whole, facts)})


def unsealed(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(tensors, facts). A file without a digest, of an earlier version, is taken as it is. Raises: one of `WRONG`."""
    with safe_open(path, "pt") as f:
        facts = dict(f.metadata() or {})
        tensors = {k: f.get_tensor(k) for k in f.keys()}
    said = facts.pop(DIGEST, None)
    if said is not None and said != digest(tensors, facts):
        raise ValueError("its numbers are not those that were written")
    return tensors, facts
