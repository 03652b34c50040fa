"""ResLoRA: a layer has the updates of the same projection in the layers before it, beside its own."""

from __future__ import annotations

from collections.abc import Sequence

from ...address import WHOLE
from ...bind import LowRank
from ...core import ZEROS, Plan, Pool, Read, Site, Use, config, kaiming, option
from ..registry import families, method


@config
class ResLoRA:
    rank: int = option(16, "rank r of every site's own update", ge=1)
    alpha: float | None = option(None, "numerator of the scale alpha / rank; none: 2 * rank", gt=0)
    dropout: float = option(0.0, "dropout on the input of A, in training", ge=0, le=0.95)
    previous: int | None = option(1, "layers before it whose updates a site has too; none: all", ge=0)


@method(
    "reslora",
    ResLoRA,
    paper="ResLoRA: Identity Residual Mapping in Low-Rank Adaption, arXiv 2402.18039",
    formula="sum over sites of r (d_in + d_out)",
    kinds=("linear",),
    lr=1e-3,
)
def plan(sites: Sequence[Site], config: ResLoRA) -> Plan:
    """y_n = W_n x_n + (alpha / r) sum_k B_(n-k) A_(n-k) x_n, k from 0 to m: the block shortcuts (bs) of the paper.

    A chain is one projection through the depth, as far as its shapes agree. Linear in: A and B, each alone. Cost: as
    m + 1 LoRAs; it merges exactly. Source: arXiv 2402.18039, section 3; github.com/microsoft/LMOps @4f2a9de (reslora,
    res_flag 2). Differs: the shortcuts of inputs and of middles, which read what another layer was given and merge
    by an estimate, are not built; m is 1 by default, theirs is given to the script.
    """
    alpha = 2.0 * config.rank if config.alpha is None else config.alpha
    bind, pools, uses = LowRank(alpha / config.rank, config.dropout), {}, []
    before: dict[str, list[str]] = {}
    for chain in families(sites).values():
        names = [s.name for s in chain]
        most = len(names) if config.previous is None else config.previous
        before |= {n: names[max(0, i - most) : i + 1][::-1] for i, n in enumerate(names)}
    for s in sites:
        pools[f"{s.name}.A"] = Pool((config.rank, s.inp), kaiming(s.inp))
        pools[f"{s.name}.B"] = Pool((s.out, config.rank), ZEROS)
        uses += [Use(s.name, bind, {k: Read(WHOLE, (f"{n}.{k}",)) for k in "AB"}) for n in before[s.name]]
    return Plan(pools, tuple(uses))
