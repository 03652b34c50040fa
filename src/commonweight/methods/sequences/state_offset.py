"""State-offset tuning: a constant that is added to every state of a state-space layer, and not fed back into it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor
from torch.nn import functional as F

from ...address import WHOLE, Combine
from ...core import ZEROS, Base, Normal, Plan, Pool, Read, Site, Use, config, kaiming, option, serial
from ..registry import method


@config
class StateOffset:
    on: Literal["state", "output"] = option(
        "state", "state: one constant for each number of each channel's state; output: one for each channel's output"
    )
    rank: int | None = option(None, "on=state: rank r of a low-rank H = U^T V; none: H itself", ge=1)
    start: Literal["zero", "random"] = option("zero", "random: numbers of N(0, 0.1^2), so that a fresh tenant acts")

    def check(self) -> str | None:
        if self.rank is not None and self.on == "output":
            return f"rank={self.rank} with on='output', a vector, which has none; leave rank out"
        if self.rank is not None and self.start == "random":
            return f"rank={self.rank} with start='random', which the source has of whole offsets; leave one of them out"
        return None


@serial
@dataclass(frozen=True)
class OnState:
    """y' = y + silu(z) (C . H), H for each channel. Shapes: x (..., d + n) is z and C, H (d, n), y (..., d).

    Linear in: H. Cost: T d n products.
    """

    anywhere: ClassVar[str] = "output"

    def output(self, x: Tensor, y: Tensor, base: Base, H: Tensor) -> Tensor:
        d, n = H.shape[-2:]
        z, c = x.split([d, n], -1)
        return y + F.silu(z) * (c @ H.mT)

    def grouped(self, x: Tensor, y: Tensor, base: Base, H: Tensor) -> Tensor:
        """`output` of n readers at once: x and y (n, T, ...), H with a leading n."""
        return self.output(x, y, base, H)


@serial
@dataclass(frozen=True)
class OnOutput:
    """y' = y + silu(z) o. Shapes: x (..., d + n) begins with z, o (d,), y (..., d). Linear in: o. Cost: T d."""

    anywhere: ClassVar[str] = "output"

    def output(self, x: Tensor, y: Tensor, base: Base, o: Tensor) -> Tensor:
        return y + F.silu(x[..., : o.shape[-1]]) * o

    def grouped(self, x: Tensor, y: Tensor, base: Base, o: Tensor) -> Tensor:
        """`output` of n readers at once: x and y (n, T, ...), o (n, d)."""
        return y + F.silu(x[..., : o.shape[-1]]) * o[:, None]


@method(
    "state-offset",
    StateOffset,
    paper="State-offset Tuning: State-based Parameter-Efficient Fine-Tuning for State Space Models, arXiv 2503.03499",
    formula="sum over state-space layers of d n, n the numbers of a state; rank: r (d + n); on=output d",
    kinds=("state",),
    named=(),
    lr=1e-3,
    size=(),
)
def plan(sites: Sequence[Site], config: StateOffset) -> Plan:
    """y_t = C_t . (h_t + H) + D x_t at every step, h_t as without it: behind the gate silu(z_t) (C_t . H) is added to
    what the last projection is given. on="output": y_t + o, so silu(z_t) o.

    Shapes: H (d, n), o (d,), both zero at the start; d is twice the model's width and n 16 in Mamba. Linear in: H, o.
    Cost: T d n products a layer, on="output" T d; nothing is kept in a cache, and it cannot be merged. For mixers of
    the first Mamba (and Jamba's), where z and C are given by layers.
    Source: arXiv 2503.03499; github.com/furiosa-ai/ssm-state-tuning @2cff985, modules/suffix_tuning.py, where it is
    called suffix tuning. Rates are theirs for mamba-130m: 2e-4 for H, 1e-3 for o. `rank`: H = U^T V, U (r, d) zero and
    V (r, n) uniform in 1 / sqrt(n) at the start, which is OURS, as is the rate of both. Not built: the reshape of H
    that their low rank can have besides.
    """
    pools, uses = {}, []
    first = Normal(0.1) if config.start == "random" else ZEROS
    for s in sites:
        d, n = s.out, s.inp
        if config.on == "output":
            pools[f"{s.name}.o"] = Pool((d,), first)
            uses.append(Use(s.name, OnOutput(), {"o": Read(WHOLE, (f"{s.name}.o",))}))
        elif config.rank is None:
            pools[f"{s.name}.H"] = Pool((d, n), first, lr=0.2)
            uses.append(Use(s.name, OnState(), {"H": Read(WHOLE, (f"{s.name}.H",))}))
        else:
            u, v = f"{s.name}.U", f"{s.name}.V"
            pools[u], pools[v] = Pool((config.rank, d), ZEROS), Pool((config.rank, n), kaiming(n))
            uses.append(Use(s.name, OnState(), {"H": Read(Combine(), (v, u))}))
    return Plan(pools, tuple(uses))
