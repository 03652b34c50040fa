"""MPOE: experts that are tensor trains, of which the largest, central core is one for all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from ...address import WHOLE
from ...bind.mixture import GATED, tell
from ...core import ZEROS, Base, Normal, Plan, Pool, Read, Site, Use, config, kaiming, option, serial
from ..choices import more_than
from ..registry import method
from .losses import largest, weighed

CORES = 5
CENTRE = 2


@config
class MPOE:
    bond: int = option(8, "bond D between the cores of an expert", ge=1)
    experts: int = option(4, "experts at each site", ge=1)
    active: int = option(2, "experts that a token takes", ge=1)
    scale: float = option(1.0, "factor on the update", gt=0)
    balance: float = option(1e-2, "weight of the load of experts in the loss, site by site", ge=0)

    def check(self) -> str | None:
        return more_than("active", self.active, "experts", self.experts)


@serial
@dataclass(frozen=True)
class Trains:
    """y' = y + scale sum_e g_e(x) W_e x, W_e[i_1..i_5, j_1..j_5] = T_1[i_1, j_1] ... T_5[i_5, j_5].

    g: the k largest of softmax(router x), over their sum. Slots: T0, T1, T3, T4 (E, D, i, j, D'), T2 (D, i, j, D'),
    router (E, d_in). Linear in: each core alone. Cost: E d_in d_out products to lay out the experts, and as many for
    each token.
    """

    k: int = 2
    scale: float = 1.0
    precise: ClassVar[bool] = True  # gates are worked out in float32
    unmerged: ClassVar[str] = GATED

    def output(self, x: Tensor, y: Tensor, base: Base, router: Tensor, **cores: Tensor) -> Tensor:
        logits = F.linear(x.float(), router)
        tell(base, logits)
        top, at = logits.softmax(-1).topk(self.k, -1)
        g = torch.zeros_like(logits).scatter(-1, at, top / top.sum(-1, keepdim=True)).to(x.dtype)
        W = matrices([cores[f"T{n}"] for n in range(CORES)]).to(x.dtype) * self.scale
        given = (g[..., None] * x[..., None, :]).flatten(-2)  # each expert is given its share of the token
        return y + F.linear(given, W.transpose(0, 1).flatten(1))


def matrices(cores: Sequence[Tensor]) -> Tensor:
    """Tensor trains of cores (E, D, i, j, D'), or (D, i, j, D') of what is one for all -> (E, prod i, prod j)."""
    E = cores[0].shape[0]
    out = cores[0].new_ones(E, 1, 1, 1)
    for c in cores:
        c = c.expand(E, *c.shape) if c.dim() == 4 else c
        out = torch.einsum("eIJd,edijD->eIiJjD", out, c).flatten(1, 2).flatten(2, 3)
    return out[..., 0]


def split(width: int) -> tuple[int, ...]:
    """A width as five factors, as equal as its primes allow; the largest is that of the central core."""
    primes, n, p = [], width, 2
    while n > 1:
        while n % p == 0:
            primes.append(p)
            n //= p
        p = p + 1 if p * p <= n else n
    found = [1] * CORES
    for p in reversed(primes):
        found[found.index(min(found))] *= p
    rest = sorted(found)
    return (*rest[2:4], rest[4], *rest[:2][::-1])


@method(
    "mpoe",
    MPOE,
    paper="Parameter-Efficient Mixture-of-Experts Architecture for Pre-trained Language Models, arXiv 2203.01104",
    formula="sum over sites of |T_3| + E (|T_1| + |T_2| + |T_4| + |T_5| + d_in), |T_k| = D i_k j_k D'",
    kinds=("linear",),
    named=("expert", "router"),
    common="the central core of every site; its own: the other cores and the routers",
    routing=lambda config: weighed(config.balance, 0.0, largest(1), "site"),
    size=("bond", "experts"),
)
def plan(sites: Sequence[Site], config: MPOE) -> Plan:
    """h = W x + sum_e g_e W_e x, every W_e a train of five cores (matrix product operator), core 3 shared by all;
    g the k largest of softmax(R x), over their sum.

    Shapes: core k (D, i_k, j_k, D'), prod i = d_out, prod j = d_in, D at most `bond` and what the cores on its sides
    can hold; R (E, d_in). The last core is zero at the start. `balance` E sum_i f_i P_i joins the loss. Linear in: each
    core alone. Source: arXiv 2203.01104; github.com/RUCAIBox/MPOE @66f64e8, mixture_of_experts.py. Differs: there the
    experts are copies of a feed-forward layer, factorised without a cut, and replace it; here they are updates of low
    bond beside frozen layers. No random dropping of the second expert and no capacity, by which a token's answer would
    depend on its neighbours; the start of the cores and of R is ours; no mask of the central core's gradient (the
    paper's share is not known, and the official code has none).
    """
    pools: dict[str, Pool] = {}
    uses = []
    bind = Trains(config.active, config.scale)
    for s in sites:
        outs, ins, E = split(s.out), split(s.inp), config.experts
        sizes, bonds, left, right = [i * j for i, j in zip(outs, ins)], [1], 1, s.out * s.inp
        for size in sizes:
            left, right = left * size, right // size
            bonds.append(min(config.bond, left, right))
        mine = {}
        for k, (i, j) in enumerate(zip(outs, ins)):
            shape = (bonds[k], i, j, bonds[k + 1])
            # the first four multiply to numbers of the size 1 / sqrt(d_in D)
            init = ZEROS if k == CORES - 1 else Normal((bonds[k + 1] * (s.inp if k == 0 else 1)) ** -0.5)
            mine[f"T{k}"] = Pool(shape, init, scope="shared") if k == CENTRE else Pool((E, *shape), init)
        mine["router"] = Pool((E, s.inp), kaiming(s.inp))
        pools |= {f"{s.name}.{k}": p for k, p in mine.items()}
        uses.append(Use(s.name, bind, {k: Read(WHOLE, (f"{s.name}.{k}",)) for k in mine}))
    return Plan(pools, tuple(uses))
