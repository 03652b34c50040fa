"""SPU: of each first feed-forward matrix a tenth is trained, the entries that the model's answers hang on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...core import config, option
from ...methods import get
from ..asks import Carried, Learned, Run, Stage, Train, body, rebodied
from ..bodies import fresh
from ..growing import Held
from ..memory import kept
from ..registry import method
from ..statistics import drawn_first, gradients
from .sequential import newest


@config
class SPU:
    ratio: float = option(0.1, "share of each matrix that a task trains", gt=0, le=1)
    rows: int = option(256, "rows of a task by which entries are scored", ge=1)
    replay: int = option(0, "rows of each task that are kept, and shown again beside later ones", ge=0)


def adapter(config: SPU) -> tuple[str, dict[str, Any]]:
    return "fish", {"ratio": config.ratio, "start": "random"}


@method(
    "spu",
    SPU,
    paper="Overcoming Generic Knowledge Loss with Selective Parameter Update, CVPR 2024, arXiv 2308.12462",
    adapter=adapter,
    carries="the entries that were trained, with their places",
    grows="at most `ratio` of the matrices' entries, 8 bytes each, a head, and `replay` rows",
    rows="`replay` of each task, none by default",
    id=166,
    roles=("up", "gate"),
)
def stage(at: Stage, had: Carried) -> Run:
    """I = |sum over batches of the gradient of mean_rows ||logits||^2| by each weight, before the task; the top `ratio`
    of each matrix are trained, all others held. What earlier tasks trained stays, unless it is chosen again.

    Stored as places and numbers (`fish`): all tasks' changes are one. Cost: a pass and its gradients over `rows` rows.
    Source: github.com/wx-zhang/spu @98a2725, trainer/spu.py. Differs: kept rows are in the batches of
    every epoch, each with its task's head, where theirs join from the second on; no biases; what is held has no weight
    decay, which theirs has; the new task's head stands where the similarity of images and texts does, as it begins.
    """
    old = newest(had)
    new = fresh(at, {}, at.name, at.task.labels, at.train)
    before = {} if old is None else body(old)
    score = gradients(at, dense(new, before), drawn_first(at.train, at.config.rows))
    chosen, values, masks = [], {}, {}
    for s in new.sites:
        top = best(score[f"{s.name}.dw"], at.config.ratio)
        there = before.get(f"{s.name}.places", top.new_zeros(0)).long()
        places, v, held = joined(there, before.get(f"{s.name}.v", torch.zeros(0)), top)
        chosen.append((s.name, len(places)))
        values |= {f"{s.name}.places": places.int(), f"{s.name}.v": v}
        masks[f"{s.name}.v"] = held
    how = {"start": "given", "kept": tuple(chosen)}
    heads = {n: had.tenants[n] for n in had.rows}
    trained = yield Train(options=how, values=values, schedule=Held(masks), beside=had.rows, heads=heads)
    mine = trained.tenants[at.name]
    tenants = {**rebodied({**had.tenants, **trained.tenants}, mine), at.name: mine}
    rows = kept(had.rows, at.train, at.config.replay, at.recipe.seed, at.name)
    return had._replace(tenants={n: tenants[n] for n in (*had.tenants, at.name)}, rows=rows)


def best(score: Tensor, ratio: float) -> Tensor:
    """Places of the int(ratio n) largest |entries| of a matrix, in order."""
    flat = score.abs().flatten()
    return flat.topk(max(1, int(ratio * len(flat)))).indices.sort().values.cpu()


def joined(there: Tensor, v: Tensor, top: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(places of both, in order; their numbers, zero where new; True where a number is an earlier task's alone)."""
    places = torch.cat([there.cpu(), top]).unique()
    out = torch.zeros(len(places))
    out[torch.searchsorted(places, there.cpu())] = v.cpu().float()
    return places, out, ~torch.isin(places, top)


def dense(new: Learned, before: dict[str, Tensor]) -> Learned:
    """The same change as a tenant that may change every entry, with the new head."""
    full = get("full")
    pools = {n: p for n, p in new.pools.items() if n.startswith(("head.", "cls_head.", "pooler_head."))}
    for s in new.sites:
        w = torch.zeros(s.out * s.inp)
        if f"{s.name}.v" in before:
            w[before[f"{s.name}.places"].long().cpu()] = before[f"{s.name}.v"].cpu().float()
        pools[f"{s.name}.dw"] = w.view(s.out, s.inp)
    return Learned(full.name, full.config(), new.seed, new.sites, new.labels, pools)
