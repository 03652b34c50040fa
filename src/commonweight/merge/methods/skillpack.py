"""SkillPack (GraftLLM): a model's change as a small pack, each kind of module compressed in its own way."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import torch
from torch import Tensor

from ..parts import combine, deltas, ranks_in_rows
from ..registry import At, Count, Range, Share, method

EMBEDDING = re.compile(r"embed|wte|wpe|lm_head|classifier|score|(^|\.)head", re.I)
ATTENTION = re.compile(r"attn|attention|(^|[._])(q|k|v|o)(_proj|_lin)?(\.|$)|query|key|value", re.I)
Bits = Annotated[int, Range(ge=2, le=16)]


def kind(name: str) -> str:
    """What a matrix is, by its name: "embedding" (and heads), "attention", or "mlp", which is everything else."""
    return "embedding" if EMBEDDING.search(name) else "attention" if ATTENTION.search(name) else "mlp"


def quantise(x: Tensor, bits: int) -> Tensor:
    """x (..., n) to the nearest of 2^bits - 1 equal steps, symmetric about zero, one step size a row."""
    top = 2 ** (bits - 1) - 1
    step = x.abs().amax(-1, keepdim=True).clamp(min=1e-30) / top
    return (x / step).round().clamp(-top, top) * step


def pack(name: str, tau: Tensor, config: Mapping[str, Any]) -> tuple[Tensor, int]:
    """(what the pack gives back of a matrix's change, bits it takes there)."""
    what = kind(name)
    if what == "embedding":
        keep = max(1, int(config["density"] * tau.numel()))
        mask = (ranks_in_rows(tau.flatten()) < keep).view_as(tau)
        return tau * mask, 16 * keep + tau.numel()
    u, s, vh = torch.linalg.svd(tau.double(), full_matrices=False)
    energy = s.square().cumsum(0)
    rank = config["rank"] or (1 + int((energy < config["energy"] * energy[-1]).sum()))
    rank = min(rank, len(s))
    u, s, vh = u[:, :rank].T, s[:rank], vh[:rank]
    if what == "attention":
        return (u.T * s @ vh).float(), 16 * rank * (sum(tau.shape) + 1)
    fine = min(rank, config["fine"])
    u, vh = (torch.cat([quantise(x[:fine], 8), quantise(x[fine:], config["bits"])]) for x in (u, vh))
    return (u.T * s @ vh).float(), (8 * fine + config["bits"] * (rank - fine)) * sum(tau.shape) + 48 * rank


@method(
    "skillpack",
    paper="Knowledge Grafting of Large Language Models (GraftLLM), arXiv 2505.18502",
    equation="theta = theta_0 + sum_t w_t C_m(tau_t): C prunes embeddings, cuts attention's rank, quantises MLPs' SVD",
    by=lambda config: "tensor",
)
def skillpack(
    tensors: Sequence[Tensor],
    base: Tensor,
    *,
    weights: Sequence[float],
    at: At,
    density: Annotated[float, Range(gt=0, le=1)] = 0.5,
    energy: Share = 0.9,
    rank: Count | None = None,
    fine: Annotated[int, Range(ge=0)] = 32,
    bits: Bits = 3,
) -> Tensor:
    """What the packs give back, weighted; the weights are what a router chooses (one model: weight 1).

    By the names of the tensors: embeddings and heads keep their largest `density`; attention is cut to the rank that
    holds `energy` of the squares (or to `rank`); every other matrix is cut so too, and its singular vectors quantised,
    the first `fine` at 8 bits, the rest at `bits`. Vectors are kept whole.
    Differs: plain rounding, one step size a singular vector; the paper rounds against activations (GPTQ). The paper's
    shares and bits vary by experiment; the defaults here are ours. Needs: whole matrices. Cost: T SVDs a matrix.
    """
    tau = deltas(tensors, base)
    if base.dim() == 2:
        config = {"density": density, "energy": energy, "rank": rank, "fine": fine, "bits": bits}
        tau = torch.stack([pack(at.name, t, config)[0] for t in tau])
    return base + combine(tau, weights)
