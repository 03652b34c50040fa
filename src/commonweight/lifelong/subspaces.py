"""Subspaces that earlier tasks read: what is kept of them, and what is left."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Space(NamedTuple):
    """Orthonormal columns (d, k). left: whether they span what is left for further tasks, in place of what is taken."""

    basis: Tensor
    left: bool = False


def free(space: Space | None, x: Tensor) -> Tensor:
    """x (d, n) in what earlier tasks have left."""
    if space is None:
        return x
    taken = space.basis @ (space.basis.T @ x)
    return taken if space.left else x - taken


def first(x: Tensor, threshold: float) -> Space:
    """Of the first task's matrix x (d, n): the largest left singular vectors below the threshold of its energy, at
    least one; beyond half of the space, what is left of it.

    Source: DualGPM, arXiv 2303.06783 (through InfLoRA), eq. (5).
    """
    u, s, _ = torch.linalg.svd(x)
    energy = s.square() / s.square().sum()
    k = max(1, int((energy.cumsum(0) < threshold).sum()))
    return turned(Space(u[:, :k]))


def more(space: Space, x: Tensor, threshold: float) -> Space:
    """The space after a further task's matrix x (d, n): directions are taken, the largest first, until so much of x's
    energy is."""
    whole = x.square().sum()
    part = x - space.basis @ (space.basis.T @ x) if not space.left else space.basis @ (space.basis.T @ x)
    u, s, _ = torch.linalg.svd(part, full_matrices=False)
    energy = s.square() / whole
    outside = float(energy.sum())  # what is not taken yet
    k = 0
    while k < len(s) and (outside >= 1 - threshold if space.left else 1 - outside < threshold):
        outside -= float(energy[k])
        k += 1
    if not k:
        return space
    if not space.left:
        return turned(Space(torch.cat([space.basis, u[:, :k]], 1)[:, : len(x)]))
    rest = space.basis - u[:, :k] @ (u[:, :k].T @ space.basis)
    return Space(torch.linalg.svd(rest)[0][:, : space.basis.shape[1] - k], True)


def turned(space: Space) -> Space:
    """What is left in place of what is taken, where that is the smaller basis."""
    d, k = space.basis.shape
    if space.left or k <= d / 2:
        return space
    return Space(torch.linalg.svd(space.basis)[0][:, k:], True)
