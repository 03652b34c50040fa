"""NeFT: the neurons that full fine-tuning turns most are found, and then trained alone from where they began."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from ...address import Lines
from ...bind import Shift
from ...core import ZEROS, Plan, Pool, Read, Site, Use, config, option
from ...core.schedule import Edit, Moment, Pools, State, last_of
from ..low_rank.lori import Places
from ..registry import method

_KINDS = (".rows", ".columns")


@config
class NeFT:
    share: float = option(0.16, "share of the neurons that are trained in the end", gt=0, le=1)
    find: float = option(0.5, "share of the steps that train all neurons, to see which of them turn", ge=0, le=1)
    form: Literal["whole", "stored"] = option("whole", "whole: every neuron has its numbers; stored: the chosen ones")
    kept: tuple[tuple[str, int], ...] = option((), "with form=stored: (site, number of its neurons) pairs")

    def check(self) -> str | None:
        if self.kept and self.form == "whole":
            return "kept goes with form='stored', which a trained tenant has"
        return None


@dataclass(frozen=True)
class Finding:
    """After a share of the steps: the neurons whose cosine to themselves at the start is least; all begin anew."""

    config: NeFT
    pools: tuple[str, ...]  # a neuron a row; a site's "columns" are its weight's transpose

    def begin(self, plan: Plan, pools: Pools, steps: int) -> tuple[State, Edit]:
        return {}, Edit()

    def last(self, steps: int) -> int:
        return last_of(self.config.find, steps)

    def settled(self, step: int, steps: int) -> bool:
        return self.config.form == "stored" or step > self.last(steps)

    def after(self, at: Moment, state: State) -> tuple[State, Edit]:
        if self.config.form == "stored" or at.step != self.last(at.steps):
            return state, Edit()
        cosines = {}
        for n in self.pools:
            site, _, kind = n.rpartition(".")
            w = at.weight(site).double()
            w = w.mT if kind == "columns" else w
            cosines[n] = F.cosine_similarity(w, w + at.pools[n].double()).cpu()
        chosen = zip(cosines, least([*cosines.values()], self.config.share))
        masks = {n: these.to(at.pools[n])[:, None].expand_as(at.pools[n]) for n, these in chosen}
        zeros = {n: torch.zeros_like(at.pools[n]) for n in masks}
        kept = {n: at.pools[n] * m for n, m in masks.items()} if at.step == at.steps else zeros
        return state, Edit(values=kept, masks=masks, moments=zeros)


def least(cosines: Sequence[Tensor], share: float) -> list[Tensor]:
    """Which of them are among the lowest share of all, at least one; of equal ones the earlier."""
    flat = torch.cat([*cosines])
    chosen = torch.zeros(len(flat), dtype=torch.bool)
    chosen[flat.argsort(stable=True)[: max(1, round(share * len(flat)))]] = True
    return list(chosen.split([len(c) for c in cosines]))


def _compact(config: NeFT, pools: Mapping[str, Tensor]) -> tuple[NeFT, dict[str, Tensor]]:
    """The neurons that have changed."""
    if config.form == "stored":
        return config, dict(pools)
    out, kept = {}, []
    for n, p in pools.items():
        if n.endswith(_KINDS):
            site, at = n.rpartition(".")[0], p.detach().any(1).nonzero()[:, 0]
            out |= {n: p.detach()[at], f"{site}.places": at.int()}
            kept.append((site, len(at)))
    return replace(config, form="stored", kept=tuple(kept)), out


@method(
    "neft",
    NeFT,
    paper="Let's Focus on Neuron: Neuron-Level Supervised Fine-tuning for Large Language Model, arXiv 2403.11621",
    formula="sum over sites of d_in d_out while it trains; share of it in the file, and a place (4 bytes) a neuron",
    kinds=("linear", "expert"),
    roles=("up", "down"),
    lr=1e-3,
    size=("share",),
    compact=_compact,
    schedule=lambda config, plan: Finding(config, tuple(n for n in plan.pools if n.endswith(_KINDS))),
)
def plan(sites: Sequence[Site], config: NeFT) -> Plan:
    """w' = w + dw, dw zero but at chosen neurons: rows of a layer, columns of the second one of a feed-forward part.

    Shapes: rows (d_out, d_in) or columns (d_in, d_out); stored: k of them, and places (k,). Linear in: rows, columns.
    Source: arXiv 2403.11621; github.com/Krypton808/NeFT @5cd6d86. Differs: both trainings are parts of one run, the
    second one from the start again; exactly the share is taken, where the code loses the last one and ties; what is
    chosen is the lowest of all sites that are read, by default the first and the second layers of feed-forward parts,
    without gates, as in the code; after a run of one step, which has no second training, they keep the first's. The
    file holds the chosen neurons alone. `adapt` and `Scheduled` choose; other loops train all neurons.
    """
    pools, uses, kept = {}, [], dict(config.kept)
    for s in sites:
        columns = s.role == "down"
        lines, width = (s.inp, s.out) if columns else (s.out, s.inp)
        name, at = f"{s.name}.{'columns' if columns else 'rows'}", f"{s.name}.places"
        k = lines if config.form == "whole" else kept.get(s.name, 0) if kept else max(1, round(config.share * lines))
        if not k:
            continue
        pools[name] = Pool((k, width), ZEROS)
        if config.form == "stored":
            pools[at] = Pool((k,), Places(lines), train=False, dtype="int32")
        read = Read(Lines((s.out, s.inp), columns), (name, at) if config.form == "stored" else (name,))
        uses.append(Use(s.name, Shift(), {"dw": read}))
    return Plan(pools, tuple(uses))
