"""Differential privacy of clients: each one's change is clipped, and the server's mean gets noise.

The unit is a client with all its rows, added or left out; the server is trusted, what it sends out is private.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core import CommonweightError
from .registry import Method, Privacy, Reply, State


def refuse(method: Method, setup: Mapping[str, Any]) -> None:
    """Raises: CommonweightError where noise on a mean of pools would not make private what is sent."""
    if method.noise:
        raise CommonweightError(
            f"dp_noise, dp_clip: {method.name} cannot: {method.noise}; fedavg, ffa-lora and fed-sb can"
        )
    if setup:
        raise CommonweightError(
            f"dp_noise, dp_clip: {method.name} begins from rows of the first client, which every client is sent and no "
            "noise covers; choose a start from the base or the seed"
        )


def normal(shape: tuple[int, ...]) -> Tensor:
    """float64 standard normals from the system's random bytes: there is no seed that anybody could know or guess.

    Box-Muller, four numbers added and halved, so that the last bits do not tell how each was rounded (Holohan and
    Braghin, arXiv 2107.10138). Cost: 32 random bytes a number.
    """
    n = math.prod(shape)
    raw = np.frombuffer(os.urandom(2 * 8 * 4 * n), np.uint64).reshape(2, 4, n)
    u, v = ((raw >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    each = np.sqrt(-2 * np.log(u)) * np.cos(2 * np.pi * v)
    return torch.from_numpy(each.sum(0) / 2).reshape(shape)


def gather(privacy: Privacy, state: State, replies: Sequence[Reply], asked: int) -> State:
    """theta <- theta + (sum_n min(1, C / |d_n|) d_n + z C N(0, 1)) / asked, d_n = theta_n - theta over all pools.

    asked: clients of the round. Who did not answer counts as no change, so that the divisor does not depend on anybody,
    and all clients weigh the same. Nothing else of the answers is told: no error, no share that was clipped.
    Source: arXiv 1710.06963, algorithm 1, its fixed divisor.
    """
    before = {n: v.double() for n, v in state.tensors.items()}
    total = {n: torch.zeros_like(v) for n, v in before.items()}
    for r in replies:
        change = {n: r.tensors[n].double() - v for n, v in before.items()}
        norm = math.sqrt(sum(float(v.square().sum()) for v in change.values()))
        for n, v in change.items():
            total[n].add_(v, alpha=min(1.0, privacy.clip / norm) if norm else 1.0)
    if privacy.noise:
        for v in total.values():
            v.add_(normal(tuple(v.shape)), alpha=privacy.noise * privacy.clip)
    new = {n: (before[n] + total[n] / asked).to(v.dtype) for n, v in state.tensors.items()}
    return state._replace(tensors=new, seen={})


def epsilon(privacy: Privacy, rounds: int) -> float | None:
    """Of a client that took part in so many rounds, by Opacus's accountant; None without Opacus. No amplification by
    sampling is counted: clients know the seed that draws them. Infinite without noise."""
    if not privacy.noise:
        return math.inf
    if not rounds:
        return 0.0
    try:
        from opacus.accountants import RDPAccountant  # type: ignore[import-not-found]
    except ImportError:
        return None
    accountant = RDPAccountant()
    accountant.history = [(privacy.noise, 1.0, rounds)]
    return float(accountant.get_epsilon(privacy.delta))


def told(privacy: Privacy, rounds: int) -> dict[str, Any]:
    """For ``run.json`` and the command's last line. rounds: the most that any client took part in."""
    found = epsilon(privacy, rounds)
    return {
        "noise": privacy.noise, "clip": privacy.clip, "delta": privacy.delta, "rounds": rounds,
        "epsilon": found if found is None or math.isfinite(found) else None,
    }  # fmt: skip


def again(about: Mapping[str, Any]) -> dict[str, Any]:
    """`told` of what a ``run.json`` says, which may have been written where no accountant was."""
    return told(Privacy(about["noise"], about["clip"], about["delta"]), about["rounds"])


def words(about: Mapping[str, Any]) -> str:
    """What `told` gave, for people."""
    if not about["noise"]:
        return f"changes clipped at {about['clip']:g}, no noise: no privacy is claimed"
    if about["epsilon"] is None:
        return "noise was added; Opacus counts its epsilon: pip install 'commonweight[privacy]', then exchange report"
    return (
        f"epsilon {about['epsilon']:.2f} at delta {about['delta']:g} for a client with all its rows, {about['rounds']} "
        "rounds at most (Opacus's RDP accountant, no amplification by sampling)"
    )
