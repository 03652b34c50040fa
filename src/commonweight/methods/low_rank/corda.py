"""CorDA: LoRA that begins in the directions of a weight that matter most, or least, to given inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from ...core import CommonweightError, Plan, Site, config, option
from ...core.spectrum import svd
from ..registry import method
from ..shown import KEPT, WEIGHT, Statistics, begun
from ..widths import ranked
from .anchored import started
from .lora_xs import fits


@config
class CorDA:
    rank: int = option(8, "rank r of the update", ge=1)
    alpha: float | None = option(None, "numerator of the scale alpha / rank; none: rank, a scale of 1", gt=0)
    mode: Literal["ipm", "kpm"] = option(
        "ipm", "ipm: the directions that the task's rows use most; kpm: those that the rows to keep use least"
    )
    start: Literal["rows", "random", "given"] = option(
        "rows", "rows: from the inputs of rows; random: as LoRA; given: what a start from rows becomes"
    )


def steadied(C: Tensor) -> tuple[Tensor, Tensor]:
    """(C + a I, its inverse): a is 0.01 of C's mean diagonal, twice as much until the inverse is one, as in PEFT.

    C has a mean diagonal of 1 afterwards but for a.
    """
    eye, C, damp = torch.eye(len(C), device=C.device), C / C.diagonal().mean(), 0.01
    while True:
        fixed = C + damp * eye
        inverse = torch.linalg.inv(fixed)
        if torch.dist(fixed @ inverse, eye) < 0.05:
            return fixed, inverse
        damp *= 2


def begin(config: CorDA, sites: Sequence[Site], seen: Statistics) -> tuple[CorDA, dict[str, Tensor]]:
    """W C = U S V^T, C that of the inputs: A = S^(1/2) V^T C^(-1), B = U S^(1/2), of the first r or of the last; then
    A times a number and B over it, so that both have one norm, as a C of another size would have it."""
    s, r, values = _scale(config), config.rank, {}
    for site in sites:
        fits("corda", site, r)
        C = seen[site.name if config.mode == "ipm" else KEPT + site.name]
        if not C.diagonal().sum() > 0:
            raise CommonweightError(f"corda: {site.name}: its input is zero in all rows; leave the site out")
        C, inverse = steadied(C)
        U, S, V = svd(seen[WEIGHT + site.name] @ C)
        at = slice(r) if config.mode == "ipm" else slice(len(S) - r, len(S))
        root = (S[at] / s).sqrt()
        A, B = root[:, None] * (V[at] @ inverse), U[:, at] * root
        if B.any():
            even = (B.norm() / A.norm()).sqrt()
            A, B = A * even, B / even
        values |= {f"{site.name}.{k}{twin}": p.clone() for k, p in (("A", A), ("B", B)) for twin in ("", "0")}
    return replace(config, start="given"), values


def _scale(config: CorDA) -> float:
    return 1.0 if config.alpha is None else config.alpha / config.rank


@method(
    "corda",
    CorDA,
    paper="CorDA: Context-Oriented Decomposition Adaptation of Large Language Models, arXiv 2406.05223",
    formula="sum over sites of r (d_in + d_out); the file holds the start too, twice as much",
    kinds=("linear",),
    unfit=ranked(),
    lr=1e-3,
    wants=lambda config: "inputs" if config.start == "rows" and config.mode == "ipm" else "",
    keeps=lambda config: "inputs" if config.start == "rows" and config.mode == "kpm" else "",
    begin=begin,
    ends=begun,
)
def plan(sites: Sequence[Site], config: CorDA) -> Plan:
    """W' = W + s (B A - B0 A0), s = alpha / r: the start B0 A0 is taken away, so that a fresh tenant is the base.

    Linear in: A and B, each alone. Source: arXiv 2406.05223, section 3, as PEFT 0.21.2 has it (lora/corda.py).
    Differs: the base, which others read too, keeps W, and the start lies in the file; C is X^T X of all tokens,
    where they divide each row by its largest entry first: other rows weigh more there. The size of C, theirs by the
    number of tokens and that entry, says how A and B share the size of their product; OURS: evenly. (With a mean
    diagonal of 1, B was 100 to 300 times A in MiniLM, and a step of A threw the model about.)
    Raises: CommonweightError for a rank above the weight's, and a site whose input is always zero.
    """
    return started(sites, config.rank, _scale(config), config.start == "given")
