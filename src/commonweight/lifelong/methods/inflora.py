"""InfLoRA: A is worked out from the new task's inputs, outside what earlier tasks read, and B alone is trained."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...core import config, option
from ..asks import Carried, Run, Stage, Train, body, rebodied
from ..bodies import fresh
from ..growing import Held, masks, options, widened
from ..registry import method
from ..statistics import drawn_first, inputs
from ..subspaces import Space, first, free, more
from .sequential import newest


@config
class InfLoRA:
    rank: int = option(10, "rank r of each task's update", ge=1)
    alpha: float | None = option(None, "numerator of the scale alpha / rank; none: rank, a scale of 1", gt=0)
    threshold: float = option(0.98, "share of the inputs' energy that is taken after the first task", gt=0, le=1)
    tasks: int = option(10, "the threshold grows to 1 over so many tasks", ge=1)
    rows: int = option(512, "rows of a task that its inputs are seen of", ge=1)


def adapter(config):
    return "lora", options(config.rank, config.alpha or float(config.rank), 1, {})


@method(
    "inflora",
    InfLoRA,
    paper="InfLoRA: Interference-Free Low-Rank Adaptation for Continual Learning, arXiv 2404.00228",
    adapter=adapter,
    carries="every task's A and B, as one LoRA, and for each layer a basis of what earlier tasks read or left",
    grows="a rank r in every layer, and a head",
)
def stage(at: Stage, had: Carried) -> Run:
    """W + (alpha / r) sum over tasks of B_t A_t. A_t: the first r left singular vectors of X^T X of the new task's
    inputs, projected out of what earlier tasks read, over sqrt(3); it stays. B_t starts at zero and trains.

    After a task the space that it reads grows (DualGPM): up to the threshold (1 - eps) t / tasks + eps of the energy.
    Cost: two passes over `rows` rows and an SVD of (d_in, d_in) a layer, before and after. Source: arXiv 2404.00228,
    section 3; github.com/liangyanshuo/InfLoRA @0d102e9, methods/inflora.py. Differs: every layer that LoRA takes, with
    a basis for each kind of input, where the code takes keys and values; where the first task alone reads more than
    half of a space, the code keeps the wrong half and stops at an assertion; a head a task; rank below a space's rest.
    """
    c, t, old = at.config, at.number, newest(had)
    alpha = c.alpha or float(c.rank)
    how = options(c.rank, alpha, t + 1, {})
    begun = fresh(at, how, at.name, at.task.labels, at.train)
    new = body(begun)
    rows = drawn_first(at.train, c.rows)
    spaces = {n: Space(v, n in had.facts["left"]) for n, v in had.tensors.items()} if old is not None else {}
    seen = inputs(at, old, begun.sites, rows)
    values = new if old is None else widened(old, new)
    for s in begun.sites:
        rest = free(_on(spaces.get(s.name)), seen[s.name].cpu())
        values[f"{s.name}.A"] = _placed(values[f"{s.name}.A"], design(rest, c.rank), t * c.rank)
    trained = yield Train(options=how, values=values, schedule=Held(masks(new, t * c.rank, a_too=True)))
    mine = trained.tenants[at.name]
    seen = inputs(at, mine, begun.sites, rows)
    share = (1 - c.threshold) * min(1.0, t / c.tasks) + c.threshold
    spaces = {
        s.name: first(x, share) if s.name not in spaces else more(_on(spaces[s.name]), x, share)  # type: ignore
        for s in begun.sites
        for x in [seen[s.name].cpu()]
    }
    left = sorted(n for n, s in spaces.items() if s.left)
    return had._replace(
        tenants={**rebodied(had.tenants, mine), at.name: mine},
        tensors={n: s.basis for n, s in spaces.items()}, facts={"left": left},
    )  # fmt: skip


def _on(space: Space | None) -> Space | None:
    return None if space is None else space._replace(basis=space.basis.cpu())


def design(x: Tensor, rank: int) -> Tensor:
    """(r, d) rows; zero ones where nothing is left."""
    u, s, _ = torch.linalg.svd(x)
    out = u[:, :rank].T / math.sqrt(3)
    out = torch.where((s[:rank] > 1e-7 * s.new_tensor(1.0).maximum(s[0]))[:, None], out, torch.zeros_like(out))
    return out if len(out) == rank else torch.cat([out, out.new_zeros(rank - len(out), out.shape[1])])


def _placed(a: Tensor, new: Tensor, at: int) -> Tensor:
    out = a.clone()
    out[at : at + len(new)] = new.to(out)
    return out
