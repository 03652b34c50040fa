"""State-offset tuning: a constant that is added to every state of a state-space layer, and not fed back into it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor
from torch.nn import functional as F

from ...address import WHOLE
from ...core import ZEROS, Base, Plan, Pool, Read, Site, Use, config, option, serial
from ..registry import method


@config
class StateOffset:
    on: Literal["state", "output"] = option(
        "state", "state: one constant for each number of each channel's state; output: one for each channel's output"
    )


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
    formula="sum over state-space layers of d n, n the numbers of a state; on=output d",
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
    called suffix tuning. Rates are theirs for mamba-130m: 2e-4 for H, 1e-3 for o. Differs: no low rank of H, no start
    from random numbers, which are options there.
    """
    pools, uses = {}, []
    for s in sites:
        slot, pool, bind = (
            ("H", Pool((s.out, s.inp), ZEROS, lr=0.2), OnState())
            if config.on == "state"
            else ("o", Pool((s.out,), ZEROS), OnOutput())
        )
        pools[f"{s.name}.{slot}"] = pool
        uses.append(Use(s.name, bind, {slot: Read(WHOLE, (f"{s.name}.{slot}",))}))
    return Plan(pools, tuple(uses))
