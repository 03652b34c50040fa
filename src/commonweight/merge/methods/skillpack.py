"""SkillPack (GraftLLM): a model's change as a small pack, each kind of module compressed in its own way."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from ...core.spectrum import svd
from ..call.declare import method
from ..maths.parts import combine, deltas, ranks_in_rows
from ..maths.rounding import GROUP, rounded
from ..registry import At, Beside, Count, Range, Share

EMBEDDING = re.compile(r"embed|wte|wpe|lm_head|classifier|score|(^|\.)head", re.I)
ATTENTION = re.compile(r"attn|attention|(^|[._])(q|k|v|o)(_proj|_lin)?(\.|$)|query|key|value", re.I)
OFFICIAL = {"attention": 1000, "mlp": 1400}  # ranks in the authors' scripts, for matrices 4096 wide
Bits = Annotated[int, Range(ge=2, le=16)]
Grams = Annotated[Any, Beside("gram")] | None


def kind(name: str) -> str:
    """What a matrix is, by its name: "embedding" (and heads), "attention", or "mlp", which is everything else."""
    return "embedding" if EMBEDDING.search(name) else "attention" if ATTENTION.search(name) else "mlp"


def pack(name: str, tau: Tensor, config: Mapping[str, Any], gram: Tensor | None = None) -> tuple[Tensor, int]:
    """(what the pack gives back of a matrix's change, bits it takes there)."""
    what, official = kind(name), config["compat"] == "official"
    if what == "embedding":
        if official:
            return tau, 16 * tau.numel()
        keep = max(1, int(config["density"] * tau.numel()))
        mask = (ranks_in_rows(tau.flatten()) < keep).view_as(tau)
        return tau * mask, 16 * keep + tau.numel()
    u, s, vh = svd(tau.double())  # grids have a side, so that signs matter
    energy = s.square().cumsum(0)
    rank = config["rank"] or (1 + int((energy < config["energy"] * energy[-1]).sum()))
    rank = min(OFFICIAL[what] if official else rank, len(s))
    out, size = torch.zeros_like(tau, dtype=torch.float64), 0
    ends = [min(rank, n) for n in (0, config["fine"], config["fine"] + config["middle"], rank)]
    for (a, b), bits in zip(pairwise(ends), (8, config["middle_bits"], config["bits"])):
        if a < b:
            v = rounded(vh[a:b], bits, gram)
            met = s[a:b, None] * v  # what U reads: S V x
            out += rounded(u[:, a:b], bits, None if gram is None else met @ gram.double() @ met.T) @ met
            groups = (b - a) * -(-tau.shape[1] // GROUP) + tau.shape[0] * -(-(b - a) // GROUP)
            size += bits * (b - a) * sum(tau.shape) + (16 + bits) * groups + 16 * (b - a)
    return out.float(), size


@method(
    "skillpack",
    paper="Knowledge Grafting of Large Language Models (GraftLLM), arXiv 2505.18502",
    equation="theta = theta_0 + sum_t w_t C_m(tau_t): C prunes embeddings, cuts the ranks of attention and MLPs, and "
    "rounds their singular vectors in mixed precision, V against x, U against S V x",
    by=lambda config: "tensor",
)
def skillpack(
    tensors: Sequence[Tensor],
    base: Tensor,
    *,
    weights: Sequence[float],
    at: At,
    statistics: Grams = None,
    density: Annotated[float, Range(gt=0, le=1)] = 0.5,
    energy: Share = 0.9,
    rank: Count | None = None,
    fine: Annotated[int, Range(ge=0)] = 20,
    middle: Annotated[int, Range(ge=0)] = 180,
    middle_bits: Bits = 4,
    bits: Bits = 2,
    compat: Literal["official"] | None = None,
) -> Tensor:
    """What the packs give back, weighted; the weights are what a router chooses (one model: weight 1).

    By the names of the tensors: embeddings and heads keep their largest `density`; every other matrix is cut to the
    rank that holds `energy` of the squares (or to `rank`), and its singular vectors are rounded, the first `fine` at 8
    bits, the next `middle` at `middle_bits`, the rest at `bits`. Vectors are kept whole. statistics: one file a model
    with `gram`; matrices that it has are rounded against those inputs (GPTQ), the others number by number.
    Source: arXiv 2505.18502, section 3.2 (from summaries, its text was not available), and the authors' code, whose
    numbers of bits are the defaults; density and energy are ours. compat="official": the ranks of that code, 1000 for
    attention and 1400 for MLPs, and embeddings and heads whole, which its pruning does not touch.
    Differs: the inputs are those of the whole model, there of one whose earlier layers are rounded already.
    Needs: whole matrices. Cost: T SVDs a matrix; with `gram`, a loop over its columns for each of the three precisions.
    """
    tau = deltas(tensors, base)
    if base.dim() == 2:
        config = {"density": density, "energy": energy, "rank": rank, "compat": compat}
        config |= {"fine": fine, "middle": middle, "middle_bits": middle_bits, "bits": bits}
        width = (base.shape[1],) * 2
        files = statistics or [None] * len(tau)
        grams = [f.whole("gram", at.name, width) if f and f.has("gram", at.name) else None for f in files]
        tau = torch.stack([pack(at.name, t, config, g)[0] for t, g in zip(tau, grams, strict=True)])
    return base + combine(tau, weights)
