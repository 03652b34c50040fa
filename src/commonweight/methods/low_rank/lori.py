"""LoRI: A is random and frozen, and of B only a sparse set of entries is trained and stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from ...address import WHOLE, Scatter
from ...bind import LowRank
from ...core import ZEROS, CommonweightError, Plan, Pool, Read, Rng, Site, Source, Use, config, kaiming, option, serial
from ..registry import method


@config
class LoRI:
    rank: int = option(32, "rank r of the update", ge=1)
    sparsity: float = option(0.9, "share of B's entries that stay zero; 0 is the dense LoRI-D", ge=0, le=0.9999)
    mask: Literal["random", "given"] = option("random", "entries drawn from the seed, or stored ones: see sparsify()")
    kept: tuple[tuple[str, int], ...] = option((), "with mask=given: (site, number of entries it keeps) pairs")
    alpha: float | None = option(None, "numerator of the scale alpha / rank; none: 2 * rank", gt=0)
    dropout: float = option(0.0, "dropout on the input of A, in training", ge=0, le=0.95)

    def check(self) -> str | None:
        if (self.mask == "given") != bool(self.kept):
            return f"mask={self.mask!r} with {len(self.kept)} kept sites; let sparsify() make such a config"
        return None


@serial
@dataclass(frozen=True)
class Places:
    """Distinct places in range(n), drawn without replacement, in order."""

    n: int

    @property
    def below(self) -> int:
        """What every place is less than: by it `formats.coding.most` counts their bytes."""
        return self.n

    def __call__(self, shape: tuple[int, ...], rng: Rng, base: Source) -> Tensor:
        return rng.permutation(self.n)[: shape[0]].sort().values


@method(
    "lori",
    LoRI,
    paper="LoRI: Reducing Cross-Task Interference in Multi-Task Low-Rank Adaptation, arXiv 2504.07448",
    formula="sum over sites of (1 - sparsity) r d_out",
    lr=2e-3,
)
def plan(sites: Sequence[Site], config: LoRI) -> Plan:
    """h = W0 x + (alpha / r) (B o mask) A x: A frozen, from the seed; only B's kept entries exist, zero at first.

    Shapes: A (r, d_in), B (k,) with its places (k,) in (d_out, r), k = (1 - sparsity) r d_out. Linear in: B.
    Cost: as LoRA and one scatter into (d_out, r). Give every task a seed of its own: their A's are then nearly
    orthogonal, which is what lets the tenants be merged.
    sparsity=0 is LoRA-FA (arXiv 2308.03303; the name `lora-fa`, as PEFT's users call it), whose A is drawn as LoRA's.
    Source: arXiv 2504.07448, LoRI-D and LoRI-S. Differs: mask="random" draws the same share of every site's B from the
    seed, in place of the paper's mask, which keeps the largest entries of a trained dense B over the whole model; that
    one is what `sparsify` makes, with its places saved (4 bytes per entry, about 1 by a codec).
    """
    pools, uses, r = {}, [], config.rank
    bind = LowRank((2.0 * r if config.alpha is None else config.alpha) / r, config.dropout)
    kept = dict(config.kept)
    for s in sites:
        given = config.mask == "given"
        k = kept.get(s.name, 0) if given else max(1, round((1 - config.sparsity) * s.out * r))
        if k == 0:
            continue
        reads = {"A": Read(WHOLE, (f"{s.name}.A",)), "B": Read(WHOLE, (f"{s.name}.B",))}
        pools[f"{s.name}.A"] = Pool((r, s.inp), kaiming(s.inp), train=False, save=False)
        if config.sparsity == 0:
            pools[f"{s.name}.B"] = Pool((s.out, r), ZEROS)
        else:
            places = Pool((k,), Places(s.out * r), train=False, save=given, dtype="int32")
            pools |= {f"{s.name}.B": Pool((k,), ZEROS), f"{s.name}.places": places}
            reads["B"] = Read(Scatter((s.out, r)), (f"{s.name}.B", f"{s.name}.places"))
        uses.append(Use(s.name, bind, reads))
    return Plan(pools, tuple(uses))


def largest(dense: Mapping[str, Tensor], sparsity: float, signed: bool = False) -> dict[str, Tensor]:
    """The places of the (1 - sparsity) largest magnitudes, or numbers, of all matrices together; matrices without any
    are absent.

    Source: arXiv 2504.07448, the global mask of the official code. Ties go to the earlier matrix.
    """
    flat = torch.cat([(m if signed else m.abs()).detach().reshape(-1).float().cpu() for m in dense.values()])
    top = flat.sort(descending=True, stable=True).indices[: max(1, int((1 - sparsity) * len(flat) + 1e-6))]
    mask = torch.zeros(len(flat), dtype=torch.bool)
    mask[top] = True
    parts = zip(dense, mask.split([m.numel() for m in dense.values()]), strict=True)
    return {name: part.nonzero().squeeze(1).int() for name, part in parts if part.any()}


def sparsify(host: Any, dense: str, name: str, sparsity: float = 0.9, keep: bool = False) -> Any:
    """LoRI-S from a trained LoRI-D: a new tenant that trains only the largest entries of the dense tenant's B.

    host: a `Host`; dense: a tenant with sparsity=0; keep: start from the dense values instead of from zero.
    Its A is the dense tenant's, and its head too. Raises: CommonweightError when `dense` is no dense LoRI tenant.
    """
    old = host[dense]
    if not isinstance(old.config, LoRI) or old.config.sparsity:
        raise CommonweightError(
            f"lori: {dense}: a mask is taken from a trained dense LoRI tenant; add one with method 'lori', sparsity=0"
        )
    used = [u.site for u in old.plan.uses if "A" in u.reads]
    places = largest({site: old.pools[f"{site}.B"] for site in used}, sparsity)
    kept = tuple((site, len(at)) for site, at in places.items())
    config = replace(old.config, sparsity=sparsity, mask="given", kept=kept)
    new = host.add(name, config, sites=lambda site, _: site in places, seed=old.plan.seed, labels=old.labels)
    with torch.no_grad():
        for pool, value in new.pools.items():
            site, _, slot = pool.rpartition(".")
            if slot == "places":
                value.copy_(places[site])
            elif site in places and slot == "B":
                value.copy_(old.pools[pool].reshape(-1)[places[site].to(value.device).long()] if keep else value)
            elif new.plan.pools[pool].train:
                value.copy_(old.pools[pool])
    return new
