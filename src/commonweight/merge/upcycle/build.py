"""From a mixture's recipe to tasks: every tensor of the result and where it is read from."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from typing import Any

from ...core import CommonweightError
from .. import registry
from ..architecture.stacks import lengths
from ..inputs import checks as inputs
from ..inputs.models import Models
from ..plan import config as stated
from ..plan.built import Built
from ..schema.types import DTYPES, Mixture, Recipe
from ..sources.at import places
from ..sources.source import Read
from ..stream.work import Job, Task
from . import layouts
from .gates import Gates

_FEED = re.compile(rf"model\.layers\.(\d+)\.mlp\.({'|'.join(layouts.DENSE)})\.weight")
_GATES = "the routers"


def build(recipe: Recipe) -> Built:
    """Raises: CommonweightError for models that have no such mixture, or do not fit each other."""
    assert recipe.mixture is not None and recipe.base is not None
    mixture, models = recipe.mixture, Models(recipe)
    if (dense := stated.read(models.lead)) is None:
        raise CommonweightError(f"{recipe.base}: no config.json lies there, which says what kind of model it is")
    found = layouts.layout(dense, mixture.shared is not None)
    for e in (*mixture.experts, *([mixture.shared] if mixture.shared else [])):
        kind = models.config(e.model).get("model_type")
        if kind != dense["model_type"]:
            raise CommonweightError(f"{e.model} is a {kind}, the base a {dense['model_type']}; wanted models of a kind")
    base, layers, width = models.open(recipe.base), int(dense["num_hidden_layers"]), int(dense["hidden_size"])
    gates = {found.gate(i): (i, len(mixture.experts)) for i in range(layers)}
    if found.shared:
        gates |= {found.common(i, "gate"): (i, 0) for i in range(layers)}
    routers = Gates(mixture, models.lead, gates, width)
    entries = [*_entries(recipe, mixture, models, found), *((n, (Read(routers, n),), 1.0) for n in gates)]
    lost = {n for n in base.shapes if n.startswith("model.layers.") and int(n.split(".")[2]) >= layers}
    if lost:
        raise CommonweightError(f"{min(lost)}: {base.label} has such a layer, and its config {layers} alone")
    wanted = None if recipe.dtype is None else DTYPES[recipe.dtype]
    kept = {n: models.dtype(Read(base, n)) for n in base.shapes}
    placed = places({n: r[0].source.shapes[r[0].name] for n, r, _ in entries}, lengths([n for n, _, _ in entries]))
    usual = kept[min(n for n in kept if _FEED.fullmatch(n))]
    tasks = tuple(
        Task(placed[n], _job(len(reads), scale), reads, None, wanted or kept.get(reads[0].name, usual))
        for n, reads, scale in entries
    )
    said = layouts.config(found, dense, len(mixture.experts), mixture.active)
    said |= {k: str(wanted or usual).removeprefix("torch.") for k in ("dtype", "torch_dtype") if k in said}
    return Built(
        recipe, tasks, {**models.sources, _GATES: routers}, models.lead, (*recipe.notices, *models.notices), said,
        None, tuple(models.hub), models.words,
    )  # fmt: skip


def _entries(
    recipe: Recipe, mixture: Mixture, models: Models, found: layouts.Layout
) -> Iterator[tuple[str, tuple[Read, ...], float]]:
    """(name in the result, what is read for it, the scale of it)."""
    base, shared = models.open(recipe.base or ""), mixture.shared
    experts = [models.open(e.model) for e in mixture.experts]
    for name, shape in base.shapes.items():
        for source in (*experts, *([models.open(shared.model)] if shared else [])):
            if source.shapes.get(name) != shape:
                has = f"of {source.shapes[name]}" if name in source.shapes else "not there"
                raise CommonweightError(f"{name}: {base.label} has it of {shape}, in {source.label} it is {has}")
        if (at := _FEED.fullmatch(name)) is None:
            if re.match(r"model\.layers\.\d+\.mlp\.", name):
                raise CommonweightError(f"{name}: {found.name} has no place for it")
            yield name, tuple(Read(s, name) for s in (experts if mixture.rest == "mean" else [base])), 1.0
            continue
        layer, part = int(at[1]), at[2]
        last = part == layouts.DENSE[-1]
        for i, (e, source) in enumerate(zip(mixture.experts, experts)):
            yield found.expert(layer, i, part), (Read(source, name),), e.scale if last else 1.0
        if shared is not None:
            yield found.common(layer, part), (Read(models.open(shared.model), name),), shared.scale if last else 1.0


@cache
def _job(models: int, scale: float) -> Job:
    method = registry.get("passthrough" if models == 1 else "linear")
    options: dict[str, Any] = {"scale": scale} if models == 1 else {}
    return Job(method, inputs.configure(method, options, None, models))
