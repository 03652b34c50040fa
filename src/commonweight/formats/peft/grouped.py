"""LoRA on a convolution in groups, as PEFT has it and as a change of its weight.

PEFT's lora_A (r, channels, *kernel) reads all input channels, and its lora_B (d_out, r / g, 1, ...) is in g groups:
output group j adds B_j A_j x, where A_j are r / g rows over ALL channels. That is a change of the layer's weight,
(d_out, inp) with inp = channels / g * kernel, only where A_j is zero outside of group j's channels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Shape(NamedTuple):
    """groups, and inp: the numbers of a patch of one group."""

    groups: int
    inp: int


def narrow(A: Tensor, B: Tensor, shape: Shape) -> tuple[Tensor, Tensor] | None:
    """(A (r, inp), B (d_out, r)) of the weight's change, from PEFT's as matrices (r, g inp) and (d_out, r / g).

    None where it is no change of the weight. B has zeros where a row of A belongs to another group.
    """
    g, inp = shape
    r, out = len(A), len(B)
    if A.shape[1] != g * inp or r % g or out % g or B.shape[1] != r // g:
        return None
    by_group = A.view(g, r // g, g, inp)  # of each group's rows, what they read of each group
    own = torch.arange(g)
    if by_group.count_nonzero() != by_group[own, :, own].count_nonzero():
        return None
    wide = B.new_zeros(g, out // g, g, r // g)
    wide[own, :, own] = B.view(g, out // g, r // g)
    return by_group[own, :, own].reshape(r, inp), wide.view(out, r)


def wide(A: Tensor, shape: Shape) -> Tensor:
    """PEFT's A (g r, g inp) of ours (r, inp), which all groups read: B stays as it is. Size: g times g as large."""
    g, inp = shape
    out = A.new_zeros(g, len(A), g, inp)
    own = torch.arange(g)
    out[own, :, own] = A
    return out.view(g * len(A), g * inp)
