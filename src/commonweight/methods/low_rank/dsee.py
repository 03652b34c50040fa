"""DSEE: a low-rank update and a few numbers of the weight, at places that the weight itself tells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...address import WHOLE, Scatter
from ...bind import LowRank, Shift
from ...core import ZEROS, Normal, Plan, Pool, Read, Rng, Site, Source, Use, config, option, serial
from ..registry import method


@config
class DSEE:
    rank: int = option(16, "rank r of the update", ge=1)
    alpha: float | None = option(None, "numerator of the scale alpha / rank; none: 2 * rank", gt=0)
    dropout: float = option(0.0, "dropout on the input of A, in training", ge=0, le=0.95)
    entries: int = option(16, "numbers of every weight that are trained beside it", ge=1)
    rounds: int = option(100, "rounds of the decomposition that finds their places", ge=1)
    step: int = option(5, "ranks that a round of it adds", ge=1)
    least: float = option(0.01, "entries of its sparse part that are smaller become zero", ge=0)


@serial
@dataclass(frozen=True)
class SparsePart:
    """The places of the largest entries of S in W = U V + S, U V of a rank that grows from one; in order."""

    site: str
    rounds: int
    step: int
    least: float

    def __call__(self, shape: tuple[int, ...], rng: Rng, base: Source) -> Tensor:
        w = base.weight(self.site).double().cpu()
        s = decomposed(w, rng, self.rounds, self.step, self.least)
        order = s.abs().reshape(-1).argsort(descending=True, stable=True)
        return order[: shape[0]].sort().values


def decomposed(w: Tensor, rng: Rng, rounds: int, step: int, least: float) -> Tensor:
    """S of GreBsmo: twice a round U = Q of qr((W - S) V^T), V = U^T (W - S), S = W - U V without what is small; then
    the first rows of R of qr(W - U V - S) join V. It ends before V has as many rows as W can have ranks."""
    out, inp = w.shape
    v, s = rng.normal((1, inp)).double(), torch.zeros_like(w)
    for _ in range(rounds):
        s = torch.zeros_like(w)
        for _ in range(2):
            u = torch.linalg.qr((w - s) @ v.mT).Q
            v = u.mT @ (w - s)
            s = w - u @ v
            s = torch.where(s.abs() < least, torch.zeros_like(s), s)
        if len(v) + step >= min(out, inp):
            break
        v = torch.cat([v, torch.linalg.qr(w - u @ v - s).R[:step]])
    return s


@method(
    "dsee",
    DSEE,
    paper="DSEE: Dually Sparsity-embedded Efficient Tuning of Pre-trained Language Models, arXiv 2111.00160",
    formula="sum over sites of r (d_in + d_out) + n; the file holds a place (4 bytes) with each of the n",
    kinds=("linear",),
    named=(),
    roles=("query", "value"),
    lr=1e-3,
)
def plan(sites: Sequence[Site], config: DSEE) -> Plan:
    """W' = W + (alpha / r) (B A + S), S zero but at n places; A normal with deviation 0.02, B and S zero at the start.

    Shapes: A (r, d_in), B (d_out, r), S (n,), places (n,). Linear in: A, B and S, each alone. Cost: the weight is made
    anew in every pass; at the start some 200 QR decompositions of a weight. Source: arXiv 2111.00160;
    github.com/VITA-Group/DSEE @61844c3. Differs: the decomposition ends before its low-rank part has the weight's own
    rank, which in narrow layers comes before 100 rounds. Not built: the second stage, which prunes the base.
    """
    pools, uses, r = {}, [], config.rank
    scale = (2.0 * r if config.alpha is None else config.alpha) / r
    for s in sites:
        n, k = s.name, min(config.entries, s.out * s.inp)
        pools[f"{n}.A"], pools[f"{n}.B"] = Pool((r, s.inp), Normal(0.02)), Pool((s.out, r), ZEROS)
        pools[f"{n}.S"] = Pool((k,), ZEROS)
        init = SparsePart(n, config.rounds, config.step, config.least)
        pools[f"{n}.places"] = Pool((k,), init, train=False, dtype="int32")
        uses.append(Use(n, LowRank(scale, config.dropout), {k: Read(WHOLE, (f"{n}.{k}",)) for k in "AB"}))
        uses.append(Use(n, Shift(scale), {"dw": Read(Scatter((s.out, s.inp)), (f"{n}.S", f"{n}.places"))}))
    return Plan(pools, tuple(uses))
