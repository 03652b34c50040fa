"""Reads of an inventory: several matrices of one kind, of which every reader takes its own combination."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..core import serial


def routing(logits: Tensor) -> Tensor:
    """z_i = sigmoid(logit_i) / sum over j of sigmoid(logit_j), along the last dimension."""
    z = torch.sigmoid(logits)
    return z / (z.sum(-1, keepdim=True) + 1e-12)


@serial
@dataclass(frozen=True)
class Heads:
    """One matrix mixed of S, each head (a block of its columns) by weights of its own.

    Shapes: pool (h, S, r, d / h), logits (h, S) -> (r, d), or (d, r) with `transpose`. Linear in: pool; the logits get
    gradients as well. Cost: S r d products, whatever h. Source: MHR, arXiv 2211.03831, section 3; `routing` as in the
    official code.
    """

    transpose: bool = False

    def __call__(self, pool: Tensor, logits: Tensor) -> Tensor:
        mixed = torch.einsum("hs,hsrd->rhd", routing(logits), pool).flatten(1)
        return mixed.mT if self.transpose else mixed


@serial
@dataclass(frozen=True)
class Stack:
    """S matrices side by side, each times its weight: what it is multiplied with gives the weighted sum of S products.

    Shapes: pool (S, d, r), weights (S,), one for each, or (S, d), one for each of its rows -> (d, S r).
    routed: the weights are `routing` of what is given. Linear in: pool, and without `routed` in the weights too; they
    get gradients as well. Cost: S d r products.
    """

    routed: bool = False

    def __call__(self, pool: Tensor, weights: Tensor) -> Tensor:
        weights = routing(weights) if self.routed else weights
        weights = weights[..., None] if weights.dim() == 1 else weights
        return (pool * weights[..., None]).transpose(0, 1).flatten(1)


@serial
@dataclass(frozen=True)
class Total:
    """A weighted sum of S vectors. Shapes: pool (S, d), weights (S,) or (S, d) -> (d,). Linear in: pool, weights."""

    def __call__(self, pool: Tensor, weights: Tensor) -> Tensor:
        return (pool * (weights[:, None] if weights.dim() == 1 else weights)).sum(0)


@serial
@dataclass(frozen=True)
class Combine:
    """Linear combinations of a basis' rows. Shapes: pool (k, d), coefficients (k, p) -> (p, d), or (d, p) with
    `transpose`. Linear in: pool and coefficients, each alone. Cost: k p d products."""

    transpose: bool = False

    def __call__(self, pool: Tensor, coefficients: Tensor) -> Tensor:
        return pool.mT @ coefficients if self.transpose else coefficients.mT @ pool
