"""Uni-LoRA: every entry of every A and B is read from one trained vector."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...address import Segment
from ...bind import LowRank
from ...core import CommonweightError, Plan, Pool, Read, Rng, Site, Source, Uniform, Use, config, option, serial
from ..registry import method


@config
class UniLoRA:
    dim: int = option(16_384, "length d of the one trained vector", ge=1)
    rank: int = option(4, "rank r of the updates that it is unrolled into", ge=1)
    bound: float = option(0.02, "the vector starts uniform in [-bound, bound); it cannot start at zero", gt=0)
    dropout: float = option(0.0, "dropout on the input of A, in training", ge=0, le=0.95)


@serial
@dataclass(frozen=True)
class Partition:
    """Every number's group among `groups`, at random, the groups as equal as can be: the first take what is over."""

    groups: int

    def __call__(self, shape: tuple[int, ...], rng: Rng, base: Source) -> Tensor:
        return rng.permutation(shape[0]) % self.groups


@serial
@dataclass(frozen=True)
class Isometry:
    """1 / sqrt(members) of every group of a `Partition` of `total` numbers: P's columns then have unit length."""

    total: int

    def __call__(self, shape: tuple[int, ...], rng: Rng, base: Source) -> Tensor:
        members = self.total // shape[0] + (torch.arange(shape[0]) < self.total % shape[0])
        return members.float().rsqrt()


@method(
    "uni-lora",
    UniLoRA,
    paper="Uni-LoRA: One Vector is All You Need, arXiv 2506.00799",
    formula="d, whatever the model and the rank",
    roles=("query", "value"),
    lr=1e-2,
    fresh="A and B read the same vector, which would get no gradient at zero: the update starts near r bound^2 d / D",
    size=("dim",),
)
def plan(sites: Sequence[Site], config: UniLoRA) -> Plan:
    """h = W0 x + B A x, where all A's and B's, laid end to end, are P theta; entry j of theta is read n_j times.

    Shapes: theta (d,), index (D,), norm (d,), D = sum of r (d_in + d_out). P_ij = 1 / sqrt(n_j) when number i is in
    group j, else 0, so P^T P = I. Linear in: theta (through A and B alone; the update is quadratic in it).
    Cost: 4 D bytes for the index, rebuilt from the seed and common to a host's tenants of one seed; then as LoRA.
    Source: arXiv 2506.00799, section 3. Differs: groups differ in size by one at most, as in PEFT; the step is not
    scaled down for the number of sites that read theta, since P has that already. Raises: when d > D.
    """
    d, r = config.dim, config.rank
    total = sum(r * (s.inp + s.out) for s in sites)
    if d > total:
        raise CommonweightError(
            f"uni-lora: dim={d} is more than the {total} numbers of all A and B; choose dim <= {total}"
        )
    pools = {
        "theta": Pool((d,), Uniform(config.bound), lr=math.sqrt(2 * len(sites))),
        "index": Pool((total,), Partition(d), train=False, save=False, dtype="int32"),
        "norm": Pool((d,), Isometry(total), train=False, save=False),
    }
    uses, start = [], 0
    for s in sites:
        reads = {}
        for slot, shape in (("A", (r, s.inp)), ("B", (s.out, r))):
            reads[slot] = Read(Segment(start, shape), ("theta", "index", "norm"))
            start += math.prod(shape)
        uses.append(Use(s.name, LowRank(1.0, config.dropout), reads))
    return Plan(pools, tuple(uses))
