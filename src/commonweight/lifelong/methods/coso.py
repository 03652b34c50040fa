"""CoSO: whole weights move inside their gradients' largest directions, orthogonal to those of earlier tasks."""

from __future__ import annotations

from typing import Any

from ...core import config, option
from ..asks import Carried, Run, Stage, Train, body, rebodied
from ..bodies import fresh
from ..projected import grown, maker
from ..registry import method
from .sequential import newest


@config
class CoSO:
    inside: int = option(15, "directions of a gradient that a step moves in", ge=1)
    sketch: int = option(100, "rank of the sketch of a task's gradients", ge=1)
    threshold: float = option(0.98, "share of the sketch's energy that later tasks leave alone", gt=0, le=1)
    keep: float = option(0.5, "what the sketch is multiplied by before each new gradient", gt=0, le=1)
    gap: int = option(1, "steps between two choices of directions", ge=1)


def adapter(config: CoSO) -> tuple[str, dict[str, Any]]:
    return "full", {}


@method(
    "coso",
    CoSO,
    paper="Continuous Subspace Optimization for Continual Learning, NeurIPS 2025, arXiv 2505.11816",
    adapter=adapter,
    carries="the change of every attention output's weight, and a basis of the directions that earlier tasks used",
    grows="a head, and directions of the bases",
    id=470,
    roles=("attn_out",),
)
def stage(at: Stage, had: Carried) -> Run:
    """One tenant of whole weight changes (the outputs of attention) goes on; see `projected.Projected` for its steps.

    After a task, Q <- [Q, the sketch's directions below the threshold]; it is not made orthogonal again, for new
    gradients were. The direction that crosses the threshold is left out, as in the code. Cost: d_out d_in numbers a
    layer, once, however many tasks; an SVD a layer and step.
    Source: github.com/quinn-ch/CoSO @c7b400c. Differs: a head a task and the task told, so no temperature of logits;
    the recipe's rates, linear where theirs are a cosine; biases stay.
    """
    c, old = at.config, newest(had)
    new = body(fresh(at, {}, at.name, at.task.labels, at.train))
    make = maker(had.tensors, ".dw", inside=c.inside, sketch=c.sketch, keep=c.keep, gap=c.gap)
    trained = yield Train(start=old, still=frozenset(n for n in new if not n.endswith(".dw")), optimizer=make)
    mine = trained.tenants[at.name]
    sketches = {k.removeprefix("sketch/"): v for k, v in trained.state.items() if k.startswith("sketch/")}
    tensors = {n: grown(had.tensors.get(n), s, c.threshold) for n, s in sketches.items()}
    return had._replace(tenants={**rebodied(had.tenants, mine), at.name: mine}, tensors=tensors)
