"""TensorPoly: a task's low-rank factors are mixed of skills, each an outer product of small leaves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from ...address import WHOLE, Heads, OfTask
from ...address.inventory import routing
from ...bind import LowRank, active
from ...core import Base, Plan, Pool, Read, Site, Uniform, Use, config, option, serial
from ..choices import misnamed, named
from ..registry import method


@config
class TensorPoly:
    skills: int = option(8, "skills S of each site", ge=1)
    rank: int = option(16, "rank r of a skill, and of the mixture", ge=1)
    order: Literal[2, 4] = option(4, "leaves N whose product a skill is")
    by: Literal["rank", "order"] = option(
        "order", "what is mixed: products (TensorPoly-I), or leaves, order by order (TensorPoly-II)"
    )
    alpha: float = option(1.0, "numerator of the scale alpha / rank", gt=0)
    tasks: str = option(
        "", "tasks by which the routing differs, with commas between; each batch says its rows'; none: one routing"
    )

    def check(self) -> str | None:
        return misnamed(self.tasks)


@serial
@dataclass(frozen=True)
class Outer:
    """LowRank of factors that are products of leaves, cut to the site's widths.

    Slots: a, b of `order` leaves: mixed already, (r, N p) and (r, N q); or (N, S, r, p) and (N, S, r, q), and z (1, S),
    from which skills are mixed here. Each product of two leaves is normalised over all its numbers. Linear in: nothing.
    Cost: S r (d_in + d_out) products, or r (d_in + d_out), and that of LowRank. inp, out: the widths.
    """

    inp: int
    out: int
    order: int = 4
    scale: float = 1.0
    anywhere: ClassVar[str] = "through"
    precise: ClassVar[bool] = True  # products are normalised in float32

    def _low(self, dtype: torch.dtype, a: Tensor, b: Tensor, z: Tensor | None = None) -> dict[str, Tensor]:
        A, B = (self._side(t, z, n) for t, n in ((a, self.inp), (b, self.out)))
        return {"A": A.to(dtype), "B": B.mT.to(dtype)}

    def _side(self, t: Tensor, z: Tensor | None, width: int) -> Tensor:
        leaves = t.chunk(self.order, -1) if z is None else t.unbind(-4)
        pairs = [outer(u, v) for u, v in zip(leaves[::2], leaves[1::2])]
        pairs = [F.layer_norm(p, p.shape[-2:]) for p in pairs]
        whole = (pairs[0] if len(pairs) == 1 else outer(*pairs))[..., :width]
        if z is None:
            return whole
        return torch.einsum("...s,...srd->...rd", routing(z)[..., 0, :], whole)

    def factors(self, **slots: Tensor) -> tuple[Tensor, Tensor]:
        return LowRank(self.scale).factors(**self._low(slots["a"].dtype, **slots))

    def weight(self, w: Tensor, **slots: Tensor) -> Tensor:
        return LowRank(self.scale).weight(w, **self._low(w.dtype, **slots))

    def output(self, x: Tensor, y: Tensor, base: Base, **slots: Tensor) -> Tensor:
        return LowRank(self.scale).output(x, y, base, **self._low(active(x, y), **slots))

    def grouped(self, x: Tensor, y: Tensor, base: Base, **slots: Tensor) -> Tensor:
        return LowRank(self.scale).grouped(x, y, base, **self._low(active(x, y), **slots))


def outer(u: Tensor, v: Tensor) -> Tensor:
    """(..., p), (..., q) -> (..., p q)."""
    return (u[..., :, None] * v[..., None, :]).flatten(-2)


def root(width: int, n: int) -> int:
    """The least p with p^n >= width."""
    p = round(width ** (1 / n))
    return next(k for k in range(max(1, p - 1), p + 2) if k**n >= width)


@method(
    "tensorpoly",
    TensorPoly,
    paper="Mixture of Latent Experts Using Tensor Products, arXiv 2405.16671",
    formula="sum over sites of N S r (p + q) + N S, p = ceil(d_in^(1/N)), q = ceil(d_out^(1/N)); by rank + S",
    common="the leaves of all skills; its own: the routing",
    size=("rank", "skills"),
    fresh="its factors are products that are normalised, so that neither can be zero",
)
def plan(sites: Sequence[Site], config: TensorPoly) -> Plan:
    """dW = (alpha / r) B A; A = w_1 x w_2 x ... x w_N, row by row, cut to d_in; B likewise. By order (II), leaf n is
    w_n = sum_s z_ns w_ns, mixed before the product; by rank (I), A = sum_s z_s A_s, A_s the product of skill s.

    Shapes: leaves a (N, S, r, p), b (N, S, r, q), logits (N, S), by rank (1, S); z = routing(logits) as in `poly`.
    Each product of two leaves is normalised over its r p^2 numbers (LayerNorm); of N = 4 the two are multiplied.
    tasks: logits (tasks, N, S), and a row reads those of its task, as in the code; else each task is a tenant of a
    common.
    Linear in: nothing; by order, the address is linear in the leaves. Source: arXiv 2405.16671; github.com/
    microsoft/mttl, branch zs_code @9c18b26, mttl/models/poly.py, whose constants these are. Differs: the norms have no
    gain and bias, as in all but one of its configs; no `lora_warmup`, no relaxed Bernoulli; leaves of II begin as those
    of I. A fresh tenant changes the base, as theirs does.
    """
    N, S, r, mixed = config.order, config.skills, config.rank, config.by == "order"
    pools: dict[str, Pool] = {}
    tasks, uses = named(config.tasks), []
    of = (len(tasks),) if tasks else ()
    for s in sites:
        logits = f"{s.name}.logits"
        pools[logits] = Pool(
            (*of, N if mixed else 1, S), Uniform(1e-3), lr=100.0
        )  # as in poly: 0.1 where leaves have 1e-3
        reads = {} if mixed else {"z": Read(OfTask(WHOLE, tasks, (0,)) if tasks else WHOLE, (logits,))}
        for slot, width in (("a", s.inp), ("b", s.out)):
            name = f"{s.name}.{slot}"
            init = Uniform(math.sqrt(2 / 6) / math.sqrt(s.inp))
            pools[name] = Pool((N, S, r, root(width, N)), init, scope="shared")
            leaves = OfTask(Heads(), tasks) if tasks else Heads()
            reads[slot] = Read(leaves, (name, logits)) if mixed else Read(WHOLE, (name,))
        uses.append(Use(s.name, Outer(s.inp, s.out, N, config.alpha / r), reads))
    return Plan(pools, tuple(uses))
