"""One low-rank subspace for many finished LoRA adapters: principal directions, and every adapter's coefficients.

Pure functions over factors; the method `share` is what reads their results, `import_peft` what runs them on files.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..core import CommonweightError

Lora = Mapping[str, tuple[Tensor, Tensor]]  # site -> (A (r, d_in), B (d_out, r)) of the update B A
Thin = tuple[Tensor, Tensor, Tensor]  # U (d_out, r), S (r,), V (r, d_in)


class Subspace(NamedTuple):
    """bases: site -> (basis_A (k_A, d_in), basis_B (k_B, d_out)), orthonormal rows; where a site has fewer directions
    than others of its group, zeros follow. coefficients: tenant -> site -> (eps_A (k_A, p), eps_B (k_B, p))."""

    bases: dict[str, tuple[Tensor, Tensor]]
    coefficients: dict[str, dict[str, tuple[Tensor, Tensor]]]


def fit(loras: Mapping[str, Lora], groups: Mapping[str, Sequence[str]], keep: float = 0.95, k: int = 0) -> Subspace:
    """The common subspace of finished adapters, and each adapter in it.

    groups: sites that get equally many directions. keep: the least share of the adapters' squared norm to keep, on
    average; k: a number of directions instead. Cost: SVDs of (sum of ranks, width) matrices; no d_out x d_in product.
    Source: arXiv 2602.06043, section 3.1 and 3.3: principal directions of the stacked A and of the stacked B, then
    coefficients by projection. Differs: adapters are stacked as S V^T and U S of their B A = U S V^T, each divided by
    its norm, and not centred; the discarded squares of both sides then bound those of B A, whatever the scales of A
    and B. To grow a subspace, fit the old tenants' updates and the new ones together: the old coefficients are
    re-expressed by the same projection.
    """
    if not loras or not 0 < keep <= 1 or k < 0:
        raise CommonweightError(
            f"a common subspace of {len(loras)} adapters with keep={keep}, k={k}: wanted adapters, 0 < keep <= 1, "
            "k >= 0"
        )
    thin = {t: {s: _thin(A, B) for s, (A, B) in lora.items()} for t, lora in loras.items()}
    norms = {t: math.sqrt(sum(float(S.square().sum()) for _, S, _ in lora.values())) for t, lora in thin.items()}
    bases: dict[str, tuple[Tensor, Tensor]] = {}
    coefficients: dict[str, dict[str, tuple[Tensor, Tensor]]] = {t: {} for t in loras}
    for group in groups.values():
        sites = [s for s in group if any(s in lora for lora in thin.values())]
        if not sites:
            continue
        sides = {s: _sides([(lora[s], norms[t]) for t, lora in thin.items() if s in lora]) for s in sites}
        there = [[found[i] for found in sides.values()] for i in (0, 1)]
        counts = [min(k or _enough(side, keep), max(len(s) for s, _ in side)) for side in there]
        for s, found in sides.items():
            bases[s] = _rows(found[0][1], counts[0]), _rows(found[1][1], counts[1])
            for t, lora in thin.items():
                if s in lora:
                    coefficients[t][s] = _project(*lora[s], *bases[s])
    return Subspace(bases, coefficients)


def _thin(A: Tensor, B: Tensor) -> Thin:
    """U (d_out, r), S (r,), V (r, d_in) of B A, by way of two QRs, in float64."""
    qb, rb = torch.linalg.qr(B.detach().cpu().double())
    qa, ra = torch.linalg.qr(A.detach().cpu().double().mT)
    u, s, v = torch.linalg.svd(rb @ ra.mT, full_matrices=False)
    return qb @ u, s, v @ qa.mT


def _sides(given: Sequence[tuple[Thin, float]]) -> list[tuple[Tensor, Tensor]]:
    """Of one site, for A and for B: (squared singular values, directions as rows)."""
    rows = [
        torch.cat([m / (n or 1.0) for m, n in side])
        for side in zip(*(((S[:, None] * V, n), (S[:, None] * U.mT, n)) for (U, S, V), n in given))
    ]
    out = []
    for stack in rows:
        _, s, v = torch.linalg.svd(stack, full_matrices=False)
        out.append((s.square(), v))
    return out


def _rows(basis: Tensor, n: int) -> Tensor:
    """n rows; zeros where the site has fewer directions than others of its group."""
    return torch.nn.functional.pad(basis[:n], (0, 0, 0, max(0, n - len(basis)))).float()


def _enough(found: Sequence[tuple[Tensor, Tensor]], keep: float) -> int:
    """The fewest directions that lose at most (1 - keep) / 2 of the squares of all these sites together."""
    longest = max(len(s) for s, _ in found)
    total = sum((torch.nn.functional.pad(s, (0, longest - len(s))) for s, _ in found), torch.zeros(longest).double())
    left = total.sum() - total.cumsum(0)
    return 1 + int((left > (1 - keep) / 2 * total.sum() + 1e-12 * total.sum()).sum())


def _project(U: Tensor, S: Tensor, V: Tensor, basis_A: Tensor, basis_B: Tensor) -> tuple[Tensor, Tensor]:
    """(eps_A, eps_B) of U S V in the span of the bases; both sides carry the same norms."""
    u, s, v = torch.linalg.svd((basis_B.double() @ U * S) @ (V @ basis_A.double().mT), full_matrices=False)
    root = s[: len(S)].sqrt()
    return (v[: len(S)].mT * root).float(), (u[:, : len(S)] * root).float()


def distance(a: Lora, b: Lora) -> float:
    """|a - b| / |a| of two updates, Frobenius norms over all sites of a together; without any d_out x d_in product."""
    gap = norm = 0.0
    for site, (A, B) in a.items():
        norm += float(_thin(A, B)[1].square().sum())
        if site in b:
            A2, B2 = (f.to(A.device) for f in b[site])
            A, B = torch.cat([A, A2]), torch.cat([B, -B2], 1)
        gap += float(_thin(A, B)[1].square().sum())
    return math.sqrt(gap / norm) if norm else 0.0
