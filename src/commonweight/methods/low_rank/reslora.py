"""ResLoRA: a layer has the updates of the same projection in the layers before it, beside its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from ...address import WHOLE
from ...bind import LowRank, Shortcut
from ...core import ZEROS, Plan, Pool, Read, Site, Use, config, kaiming, option
from ..registry import families, method


@config
class ResLoRA:
    rank: int = option(16, "rank r of every site's own update", ge=1)
    alpha: float | None = option(None, "numerator of the scale alpha / rank; none: 2 * rank", gt=0)
    dropout: float = option(0.0, "dropout on the input of A, in training", ge=0, le=0.95)
    shortcut: Literal["block", "input", "middle"] = option(
        "block",
        "block: the updates of layers before; input: what the one before was given; middle: A of it",
    )
    previous: int | None = option(1, "block: layers before it whose updates a site has too; none: all", ge=0)

    def check(self) -> str | None:
        if self.shortcut != "block" and self.previous != 1:
            what = f"previous={self.previous} with shortcut={self.shortcut!r}"
            return f"{what}, which reads the one layer before; leave it out"
        return None


@method(
    "reslora",
    ResLoRA,
    paper="ResLoRA: Identity Residual Mapping in Low-Rank Adaption, arXiv 2402.18039",
    formula="sum over sites of r (d_in + d_out)",
    kinds=("linear",),
    lr=1e-3,
)
def plan(sites: Sequence[Site], config: ResLoRA) -> Plan:
    """block: y_n = W_n x_n + s sum_k B_(n-k) A_(n-k) x_n, k from 0 to m. input: + s B_n A_n (x_n + x_(n-1)), of the
    first layer 2 s B_0 A_0 x_0. middle: + s B_n (A_n x_n + A_(n-1) x_(n-1)). s = alpha / r.

    A chain is one projection through the depth, as far as its shapes agree. Linear in: A and B, each alone. Cost: block
    as m + 1 LoRAs, and it merges exactly; input as LoRA; middle one more A. The latter two are no change of weights:
    the released code merges them by an estimate from norms, which is not done here. They need all layers in one pass,
    so that blocks cannot be recomputed one by one (gradient checkpointing refuses by name).
    Source: arXiv 2402.18039, section 3; github.com/microsoft/LMOps @4f2a9de (reslora). Differs: m is 1 by default,
    theirs is given to the script; middle reads one layer before.
    """
    alpha = 2.0 * config.rank if config.alpha is None else config.alpha
    scale, pools, uses = alpha / config.rank, {}, []
    for chain in families(sites).values():
        names = [s.name for s in chain]
        most = len(names) if config.previous is None else config.previous
        for i, s in enumerate(chain):
            pools[f"{s.name}.A"] = Pool((config.rank, s.inp), kaiming(s.inp))
            pools[f"{s.name}.B"] = Pool((s.out, config.rank), ZEROS)
            if config.shortcut == "block":
                bind = LowRank(scale, config.dropout)
                uses += [_use(n, bind, s.name) for n in names[max(0, i - most) : i + 1][::-1]]
            else:
                before = names[i - 1] if i else ""
                bind = Shortcut(scale, config.dropout, before, i + 1 < len(names))
                middle = {"C": Read(WHOLE, (f"{before or s.name}.A",))} if config.shortcut == "middle" else {}
                use = _use(s.name, bind, s.name)
                uses.append(use._replace(reads={**use.reads, **middle}))
    return Plan(pools, tuple(uses))


def _use(of: str, bind: LowRank | Shortcut, at: str) -> Use:
    """At a site, the factors of one."""
    return Use(at, bind, {k: Read(WHOLE, (f"{of}.{k}",)) for k in "AB"})
