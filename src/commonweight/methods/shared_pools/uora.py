"""UORA: VeRA whose frozen rows are drawn again, in part, where the vectors that scale them stay small."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...address import WHOLE, Blended
from ...bind import LowRank
from ...core import ZEROS, Constant, Orthonormal, Plan, Pool, Read, Rng, Site, Use, config, option, serial
from ...core.init import Source
from ...core.schedule import Edit, Moment, Pools, State
from ..registry import method


@config
class UORA:
    rank: int = option(256, "rank r of the shared random matrices", ge=1)
    d_initial: float = option(0.1, "first value of d; ours, as VeRA's", gt=0)
    dropout: float = option(0.0, "dropout on the input of A, in training", ge=0, le=0.95)
    draws: int = option(2, "how often a row may be drawn again; ours", ge=0)
    share: float = option(
        0.1, "share of the rows, those of the smallest scale, that a look draws again; ours", ge=0, le=1
    )
    mix: float = option(0.5, "share of the new row in the row from then on; ours", gt=0, le=1)
    every: int = option(10, "steps between two looks at the scales; ours", ge=1)
    until: float = option(0.5, "share of the run after which no row is drawn again; ours", ge=0, le=1)


@serial
@dataclass(frozen=True)
class Leading:
    """1 in the first place of the first dimension, 0 in the others."""

    def __call__(self, shape: tuple[int, ...], rng: Rng, base: Source) -> Tensor:
        out = torch.zeros(shape)
        out[0] = 1
        return out


@serial
@dataclass(frozen=True)
class OrthonormalStack:
    """Matrices of orthonormal rows or columns, uniformly distributed, one after the other in the first dimension."""

    def __call__(self, shape: tuple[int, ...], rng: Rng, base: Source) -> Tensor:
        return torch.stack([Orthonormal()(shape[1:], rng, base) for _ in range(shape[0])])


def magnitude(vectors: Sequence[Tensor], rows: int) -> Tensor:
    """(rows,): the mean |entry| of each row over the vectors that are long enough to scale it."""
    total, many = torch.zeros(rows), torch.zeros(rows)
    for v in vectors:
        total[: len(v)] += v.detach().float().abs().cpu()
        many[: len(v)] += 1
    return total / many.clamp(min=1)


def again(shares: Tensor, scale: Tensor, share: float, mix: float) -> Tensor:
    """The shares after a look. shares (K, R): row i is sum_k shares[k, i] of the k-th draw of it; scale (R,).

    The rows of the smallest scale, as many as `share` of all, if they have a draw left: their shares times 1 - mix, and
    mix of their next draw.
    """
    last = (shares != 0).long() * torch.arange(len(shares), device=shares.device)[:, None]
    at = last.max(0).values + 1  # the draw that comes next
    i = scale.argsort(stable=True)[: int(share * len(scale))].to(shares.device)
    i = i[at[i] < len(shares)]
    out = shares.clone()
    out[:, i] *= 1 - mix
    out[at[i], i] = mix
    return out


@dataclass(frozen=True)
class Again:
    """Every `every` steps, in the first `until` of the run, rows of A by |d| and rows of B by |b| are looked at."""

    config: UORA

    def begin(self, plan: Plan, pools: Pools, steps: int) -> tuple[State, Edit]:
        return {}, Edit()

    def settled(self, step: int, steps: int) -> bool:
        return step >= self.config.until * steps

    def after(self, at: Moment, state: State) -> tuple[State, Edit]:
        c = self.config
        if not c.draws or at.step % c.every or at.step > c.until * at.steps:
            return state, Edit()
        return state, Edit(
            values={f"uora.{k}.shares": self._shares(at.pools, k, v) for k, v in (("A", "d"), ("B", "b"))}
        )

    def _shares(self, pools: Mapping[str, Tensor], matrix: str, vector: str) -> Tensor:
        shares = pools[f"uora.{matrix}.shares"]
        scales = [p for n, p in pools.items() if n.endswith(f".{vector}")]
        return again(shares, magnitude(scales, shares.shape[1]), self.config.share, self.config.mix)


@method(
    "uora",
    UORA,
    paper="UORA: Uniform Orthogonal Reinitialization Adaptation in Parameter-Efficient Fine-Tuning of Large Models, "
    "arXiv 2505.20154",
    formula="sum over sites of r + d_out; the file also holds draws + 1 shares for each row of A and B",
    lr=1e-2,
    schedule=lambda config, plan: Again(config),
)
def plan(sites: Sequence[Site], config: UORA) -> Plan:
    """h = W0 x + diag(b) B diag(d) A x as VeRA, with A and B orthonormal, frozen and shared; d starts at 0.1, b at
    zero. While it trains, rows of A whose entries of d are small, and rows of B whose entries of b are, become
    (1 - mix) old + mix new, with a new row of another orthonormal matrix.

    Shapes: A (draws + 1, r, max d_in) and B (draws + 1, max d_out, r), of which a site reads the leading corner; their
    shares (draws + 1, r) and (draws + 1, max d_out); d (r,), b (d_out,). All draws come from the seed, so that tenants
    of a seed have them once and a file holds only how much of each draw a row is made of. Linear in: d and b, each
    alone. Cost: as VeRA, and draws + 1 products for each number of A and B in a pass.
    Source: the abstract of arXiv 2505.20154 and summaries; there is no code, and the text could not be read. From
    there: what is above. Ours, since it is in no source that we could read: which rows are small (a tenth of them, by
    the mean magnitude over the sites that read them), when that is looked at, mix, how often a row is drawn again,
    that b, d and their moments stay as they are, rank, rate and the start of d. `adapt` and `Scheduled` draw rows
    again; other loops train VeRA over orthonormal matrices.
    """
    r, n = config.rank, config.draws + 1
    d_in, d_out = max(s.inp for s in sites), max(s.out for s in sites)
    pools = {
        "uora.A": Pool((n, r, d_in), OrthonormalStack(), train=False, save=False),
        "uora.B": Pool((n, d_out, r), OrthonormalStack(), train=False, save=False),
        "uora.A.shares": Pool((n, r), Leading(), train=False),
        "uora.B.shares": Pool((n, d_out), Leading(), train=False),
    }
    uses = []
    for s in sites:
        pools[f"{s.name}.d"] = Pool((r,), Constant(config.d_initial))
        pools[f"{s.name}.b"] = Pool((s.out,), ZEROS)
        reads = {
            "A": Read(Blended(r, s.inp), ("uora.A", "uora.A.shares")),
            "B": Read(Blended(s.out, r), ("uora.B", "uora.B.shares")),
        }
        reads |= {k: Read(WHOLE, (f"{s.name}.{k}",)) for k in "db"}
        uses.append(Use(s.name, LowRank(1.0, config.dropout), reads))
    return Plan(pools, tuple(uses))
