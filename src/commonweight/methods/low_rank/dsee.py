"""DSEE: a low-rank update and a few numbers of the weight, at places that the weight itself tells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ...address import WHOLE, Scatter
from ...bind import LowRank, Masked, Shift, Thinned
from ...core import (
    ONES,
    ZEROS,
    CommonweightError,
    Constant,
    Normal,
    Plan,
    Pool,
    Read,
    Rng,
    Site,
    Source,
    Use,
    config,
    counted,
    option,
    serial,
)
from ..blocks import headed
from ..registry import method
from .dsee_stage import UPDATED, SecondStage, attentions


@config
class DSEE:
    rank: int = option(16, "rank r of the update", ge=1)
    alpha: float | None = option(None, "numerator of the scale alpha / rank; none: 2 * rank", gt=0)
    dropout: float = option(0.0, "dropout on the input of A, in training", ge=0, le=0.95)
    entries: int = option(16, "numbers of every weight that are trained beside it", ge=1)
    rounds: int = option(100, "rounds of the decomposition that finds their places", ge=1)
    step: int = option(5, "ranks that a round of it adds", ge=1)
    least: float = option(0.01, "entries of its sparse part that are smaller become zero", ge=0)
    prune: float = option(
        0.0,
        "share of the base's numbers that a second stage leaves out of this tenant (paper: 0.2); 0: none",
        ge=0,
        le=0.99,
    )
    prune_heads: int = option(0, "heads of each attention that it leaves out, in place of numbers (paper: 3)", ge=0)
    first: float = option(0.5, "share of the steps of the first stage, where there is a second; ours", gt=0, le=0.9)
    score: Literal["update", "weight", "both", "large", "random"] = option(
        "update",
        "what goes of queries and values: where the update is small, the weight, or both together; large: where the "
        "update is large; random: drawn from the seed",
    )
    heads: int | None = option(None, "heads of an attention; none: as the model says", ge=0)
    told: tuple[tuple[str, int], ...] = option(
        (), "(pattern, heads) pairs: what the model says, where its attentions differ", globs=True
    )
    compat: Literal["paper", "official"] = option(
        "paper", "official: in score=both the low-rank part has no scale, as brackets lack in the released code"
    )

    def check(self) -> str | None:
        if self.prune_heads and self.score == "large":
            return "score='large' is one for numbers, not for heads; take prune"
        return "prune and prune_heads are two ways; take one" if self.prune and self.prune_heads else None

    @property
    def scale(self) -> float:
        return (2.0 * self.rank if self.alpha is None else self.alpha) / self.rank


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


def _schedule(config: DSEE, plan: Plan) -> SecondStage | None:
    if not (config.prune or config.prune_heads):
        return None
    named = {k: [n.removesuffix(f".{k}") for n in plan.pools if n.endswith(f".{k}")] for k in ("bits", "heads", "A")}
    pairs = (
        zip(named["A"][::2], named["A"][1::2]) if config.prune_heads else ()
    )  # of each attention, in the plan's order
    heads = tuple((q, v, o, plan.pools[f"{o}.heads"].shape[0]) for (q, v), o in zip(pairs, named["heads"]))
    return SecondStage(config, config.scale, tuple(named["bits"]), heads, plan.seed)


def _reading(config: DSEE) -> dict[str, tuple[str, ...]]:
    if config.prune:
        return {"roles": ()}
    return {"roles": (*UPDATED, "attn_out")} if config.prune_heads else {}


@method(
    "dsee",
    DSEE,
    paper="DSEE: Dually Sparsity-embedded Efficient Tuning of Pre-trained Language Models, arXiv 2111.00160",
    formula="sum over sites of r (d_in + d_out) + n; the file holds a place (4 bytes) with each of the n, and with "
    "prune a bit for each number of every layer",
    kinds=("linear",),
    named=(),
    roles=("query", "value"),
    lr=1e-3,
    schedule=_schedule,
    reading=_reading,
    told=lambda config, sites, heads: headed(config, sites, heads) if config.prune_heads else config,
)
def plan(sites: Sequence[Site], config: DSEE) -> Plan:
    """W' = W + (alpha / r) (B A + S), S zero but at n places; A normal with deviation 0.02, B and S zero at the start.

    With prune W' = m W + the same, m a bit for each number: after the first stage, of queries and values together, the
    share whose update is smallest goes, of all other layers together, which get no update, the share that is smallest.
    With prune_heads the heads go whose queries' and values' updates are smallest, at the input of the layer behind
    them. It is the tenant that leaves them out: others read all of the base, whose bytes stay. `merged` has the zeros.
    Shapes: A (r, d_in), B (d_out, r), S (n,), places (n,), bits (ceil(d_in d_out / 8),), heads (h,). Linear in: A, B
    and S, each alone. Cost: the weight is made anew in every pass; at the start some 200 QR decompositions of a weight;
    with prune a bit for each number of the file, a sort of them all once, and a second product in the other layers.
    Source: arXiv 2111.00160; github.com/VITA-Group/DSEE @61844c3, and @b455a42 for prune_mode
    ABS, NABS, W, WABS and random (`update`, `large`, `weight`, `both`, `random`; AB, NAB and WAB are of runs without
    S). Differs: the
    decomposition ends before its low-rank part has the weight's own rank, which in narrow layers comes before 100
    rounds; both stages are one run with one course of the rate (`first` is ours), in `adapt` and `Scheduled`; other
    loops prune nothing. Raises: CommonweightError for heads that cannot be told, and nothing to update.
    """
    if config.prune_heads:
        by, parts = {s.name: s for s in sites}, []
        for q, v, o, n in attentions(sites, config):
            masked = Plan({f"{o}.heads": Pool((n,), ONES, train=False)}, (_use(o, Thinned(), {"m": "heads"}),))
            parts += [_update(by[q], config), _update(by[v], config), masked]
        return _sum(parts)
    if not config.prune:
        return _sum([_update(s, config) for s in sites])
    if not any(s.role in UPDATED for s in sites):
        raise CommonweightError(
            f"dsee: prune updates queries and values, and none of {counted(len(sites), 'site')} is one; choose sites "
            "with them"
        )
    return _sum([p for s in sites for p in (_bits(s), *([_update(s, config)] if s.role in UPDATED else []))])


def _update(site: Site, config: DSEE) -> Plan:
    n, k, r = site.name, min(config.entries, site.out * site.inp), config.rank
    init = SparsePart(n, config.rounds, config.step, config.least)
    pools = {
        f"{n}.A": Pool((r, site.inp), Normal(0.02)), f"{n}.B": Pool((site.out, r), ZEROS), f"{n}.S": Pool((k,), ZEROS),
        f"{n}.places": Pool((k,), init, train=False, dtype="int32"),
    }  # fmt: skip
    sparse = Use(n, Shift(config.scale), {"dw": Read(Scatter((site.out, site.inp)), (f"{n}.S", f"{n}.places"))})
    return Plan(pools, (_use(n, LowRank(config.scale, config.dropout), {"A": "A", "B": "B"}), sparse))


def _bits(site: Site) -> Plan:
    bits = Pool((-(-site.out * site.inp // 8),), Constant(255.0), train=False, dtype="uint8")
    return Plan({f"{site.name}.bits": bits}, (_use(site.name, Masked(), {"bits": "bits"}),))


def _use(site: str, bind: Any, reads: Mapping[str, str]) -> Use:
    return Use(site, bind, {slot: Read(WHOLE, (f"{site}.{pool}",)) for slot, pool in reads.items()})


def _sum(parts: Sequence[Plan]) -> Plan:
    return Plan({n: p for part in parts for n, p in part.pools.items()}, tuple(u for part in parts for u in part.uses))
