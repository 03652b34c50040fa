"""Any change of weights as PEFT's plain LoRA: exact where the change has factors, else by truncated SVD."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...core import CommonweightError
from ..pairs import commonest
from .common import exactly


class Low(NamedTuple):
    """B A of one module, with its relative error in the Frobenius norm. bias: what its bias gains."""

    A: Tensor
    B: Tensor
    error: float = 0.0
    bias: Tensor | None = None


def joined(parts: list[tuple[Tensor, Tensor, tuple[int, int] | None]], out: int) -> Low:
    """Updates of one module in one pair. parts: (A, B, row range of the module's weight that B writes to).

    A pair of more rank than the weight has is multiplied out: one factor becomes the identity.
    """
    rows = []
    for _, B, rows_of in parts:
        wide = B.new_zeros(out, B.shape[1])
        wide[slice(*rows_of) if rows_of else slice(None)] = B
        rows.append(wide)
    A, B = torch.cat([a for a, _, _ in parts]), torch.cat(rows, 1)
    inp = A.shape[1]
    if A.shape[0] > min(out, inp):
        delta = B @ A
        eye = torch.eye(min(out, inp), device=delta.device)
        A, B = (eye, delta) if inp <= out else (delta, eye)
    return Low(A, B)


def truncated(delta: Tensor, rank: int | None, tolerance: float) -> Low:
    """The smallest rank whose relative error is within `tolerance`, at most `rank`. Cost: one SVD in float64.

    Where `rank` comes first, the error is larger than the tolerance; the caller looks at it.
    """
    u, s, v = torch.linalg.svd(delta.double(), full_matrices=False)
    total = s.square().sum()
    if total == 0:
        return Low(delta.new_zeros(1, delta.shape[1]), delta.new_zeros(delta.shape[0], 1))
    left = (total - s.square().cumsum(0)).clamp(min=0) / total  # left[i]: squared error of rank i + 1
    fits = (left <= tolerance**2).nonzero()
    r = int(fits[0]) + 1 if len(fits) else len(s)
    r = min(r, rank or r)
    root = s[:r].sqrt()
    A, B = (root[:, None] * v[:r]).float(), (u[:, :r] * root).float()
    error = ((B.double() @ A.double() - delta.double()).norm() / total.sqrt()).item()
    return Low(A, B, error)


def within(modules: Mapping[str, Low], rank: int | None, tolerance: float) -> None:
    """Refuses an export that is worse than asked for, naming the worst module."""
    name, worst = max(modules.items(), key=lambda m: m[1].error)
    # float32 factors cannot come closer to a change that is itself a difference of float32 numbers
    if worst.error > max(tolerance, 1e-6):
        raise CommonweightError(
            f"{name}: rank {worst.A.shape[0]} leaves a relative error of {worst.error:.2g}; tolerance={tolerance:g} "
            f"was asked for, rank={rank} allows no more; raise rank or tolerance, or keep the tenant in its own file"
        )


def config(modules: Mapping[str, Low], dropout: float) -> dict[str, Any]:
    """The LoRA config that reads `modules`: scale 1 everywhere, for it is folded into B."""
    ranks = {n: m.A.shape[0] for n, m in modules.items()}
    rank = commonest(ranks.values())
    pattern = {exactly(n): r for n, r in ranks.items() if r != rank}
    return {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": pattern,
        "alpha_pattern": dict(pattern),
        "lora_dropout": dropout,
        "bias": "none",
        "lora_bias": any(m.bias is not None for m in modules.values()),
        "use_rslora": False,
        "use_dora": False,
        "init_lora_weights": True,
        "modules_to_save": None,
    }


def tensors(modules: Mapping[str, Low]) -> dict[str, Tensor]:
    """Tensors by key, without PEFT's prefix. With a changed bias anywhere, every module has one (PEFT asks for it)."""
    biased = any(m.bias is not None for m in modules.values())
    out = {}
    for name, m in modules.items():
        out[f"{name}.lora_A.weight"], out[f"{name}.lora_B.weight"] = m.A, m.B
        if biased:
            out[f"{name}.lora_B.bias"] = m.B.new_zeros(m.B.shape[0]) if m.bias is None else m.bias
    return out
