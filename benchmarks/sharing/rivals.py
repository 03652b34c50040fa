"""What shares nothing, at the same bytes: weights of fewer bits, and a smaller model that begins from nothing."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from commonweight.builder import Anatomy
from commonweight.share import share

GROUP = 64


def rounded(weight: Tensor, bits: int) -> Tensor:
    """To the nearest of 2**bits steps between the least and the largest of each group of 64 along the input."""
    rows = weight.reshape(-1, GROUP) if weight.numel() % GROUP == 0 else weight.reshape(len(weight), -1)
    low, high = rows.amin(1, keepdim=True), rows.amax(1, keepdim=True)
    step = ((high - low) / (2**bits - 1)).clamp_min(1e-12)
    return (((rows - low) / step).round() * step + low).reshape(weight.shape)


def quantised(model: nn.Module, about: Anatomy, bits: int) -> tuple[nn.Module, float]:
    """(a copy whose blocks' matrices are rounded, the share of the blocks' bytes in bfloat16: bits and two numbers of
    16 bits a group)."""
    out, held, whole = copy.deepcopy(model), 0.0, 0.0
    named = dict(out.named_parameters())
    for at, block in enumerate(about.blocks):
        for w in block:
            p = named[f"{about.path}.{at}.{w.name}"]
            whole += 2 * p.numel()
            if p.dim() < 2:
                held += 2 * p.numel()
                continue
            with torch.no_grad():
                p.copy_(rounded(p, bits))
            held += p.numel() * (bits / 8 + 4 / GROUP)
    return out, held / whole


def from_nothing(model: nn.Module, about: Anatomy, layers: int, seed: int) -> Any:
    """As many blocks, at random; what stands around them is the original's."""
    torch.manual_seed(seed)
    small = share(model, "drop", keep=layers)
    for name, p in small.named_parameters():
        if name.startswith(f"{about.path}.") and p.dim() >= 2:
            nn.init.normal_(p, std=0.02)
    return small
