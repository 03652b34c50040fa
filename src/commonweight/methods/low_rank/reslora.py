"""ResLoRA: a layer has the updates of the same projection in the layers before it, beside its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch

from ...address import WHOLE
from ...bind import LowRank, Shortcut
from ...core import ZEROS, CommonweightError, Plan, Pool, Read, Site, Use, config, kaiming, option
from ..registry import families, method


@config
class ResLoRA:
    rank: int = option(16, "rank r of every site's own update", ge=1)
    alpha: float | None = option(None, "numerator of the scale alpha / rank; none: 2 * rank", gt=0)
    dropout: float = option(0.0, "dropout on the input of A, in training", ge=0, le=0.95)
    shortcut: Literal["block", "input", "middle"] = option(
        "block",
        "block: the updates of layers before; input: what the one before was given; middle: A of what they were",
    )
    previous: int | None = option(1, "block and middle: layers before it that a site reads; none: all", ge=0)

    def check(self) -> str | None:
        what = f"previous={self.previous} with shortcut={self.shortcut!r}"
        if self.shortcut == "input" and self.previous != 1:
            return f"{what}, which reads the one layer before; leave it out"
        if self.shortcut == "middle" and self.previous == 0:
            return f"{what}, which is a LoRA; give at least 1, or take lora"
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
    first layer 2 s B_0 A_0 x_0. middle: + s B_n sum_k A_(n-k) x_(n-k). s = alpha / r.

    A chain is one projection through the depth, as far as its shapes agree. Linear in: A and B, each alone. Cost: block
    as m + 1 LoRAs, and it merges exactly; input as LoRA; middle m more A, and what a layer was given is kept until the
    last of its m readers has run. The latter two are no change of weights; `estimated` makes a LoRA of them that is
    one, by norms. They need all layers in one pass, so that blocks cannot be recomputed one by one (gradient
    checkpointing refuses by name).
    Source: arXiv 2402.18039, section 3; github.com/microsoft/LMOps @4f2a9de (reslora), where input reads one layer
    before it however many the others do. Differs: m is 1 by default, theirs is given to the script; middle has dropout
    of its own on each x, where theirs keeps the products.
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
                before = names[max(0, i - most) : i][::-1] or [""]
                bind = Shortcut(scale, config.dropout, before[0], min(most, len(names) - 1 - i), tuple(before[1:]))
                slots = [f"C{k}" if k > 1 else "C" for k in range(1, len(before) + 1)]
                middle = {k: Read(WHOLE, (f"{n or s.name}.A",)) for k, n in zip(slots, before)}
                use, middle = _use(s.name, bind, s.name), middle if config.shortcut == "middle" else {}
                uses.append(use._replace(reads={**use.reads, **middle}))
    return Plan(pools, tuple(uses))


def _use(of: str, bind: LowRank | Shortcut, at: str) -> Use:
    """At a site, the factors of one."""
    return Use(at, bind, {k: Read(WHOLE, (f"{of}.{k}",)) for k in "AB"})


def estimated(host: Any, shortcut: str, name: str, norms: Mapping[str, float] | None = None) -> Any:
    """A LoRA in place of a tenant with shortcut="input" or "middle"; it merges: y_n = (W_n + (1 + a_n) s B_n A_n) x_n.

    a_n = f_(n-2) / f_(n-1), f the Frobenius norm of a layer's weight with its update, 1 of the first two layers; with
    `norms`, which the caller has seen, f_(n-1) / f_n, f the mean norm of x_n (input; 1 of the first layer), or sum_k
    f_(n-k) / f_n, f that of A_n x_n (middle; 0 of the first). host: a `Host`; shortcut: a tenant's name. A new tenant;
    a copy of its head too.
    Source: arXiv 2402.18039; merge_bi and merge_bw of the released code. Differs: that code adds the
    update, transposed and without s, to the frozen weight itself while it works f out; its norms are of the last 100
    batches of the training. Raises: CommonweightError for another tenant, and for middle without norms.
    """
    old = host[shortcut]
    if not isinstance(old.config, ResLoRA) or old.config.shortcut == "block":
        raise CommonweightError(
            f"reslora: {shortcut}: an estimate is of shortcut='input' or 'middle'; other tenants merge as they are"
        )
    if old.config.shortcut == "middle" and norms is None:
        raise CommonweightError(
            f"reslora: {shortcut}: of shortcut='middle' the estimate is by norms of A x; give norms="
        )
    uses = {u.site: u.bind for u in old.plan.uses if isinstance(u.bind, Shortcut)}

    def size(n: str) -> float:
        if norms is not None:
            return norms[n]
        update = uses[n].scale * old.pools[f"{n}.B"] @ old.pools[f"{n}.A"]
        return float((host.weight(n) + update.to(host.weight(n).dtype)).norm())

    first = 1.0 if old.config.shortcut == "input" else 0.0
    with torch.no_grad():
        more = {n: first for n in uses}
        for n, bind in uses.items():
            if norms is not None and bind.source:
                more[n] = sum(size(m) for m in (bind.source, *bind.further)) / size(n)
            elif bind.source and (before := uses[bind.source].source):
                more[n] = size(before) / size(bind.source)
        alpha = next(iter(uses.values())).scale * old.config.rank
        new = host.add(
            name, "lora", rank=old.config.rank, alpha=alpha, dropout=old.config.dropout, labels=old.labels,
            sites=lambda site, _: site in uses,
        )  # fmt: skip
        for pool, value in new.pools.items():
            value.copy_(old.pools[pool] * (1 + more[pool[:-2]] if pool[:-2] in uses and pool.endswith(".B") else 1))
    return new
