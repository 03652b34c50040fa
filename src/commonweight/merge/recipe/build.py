"""From a recipe to tasks: every tensor of the result with its method, its configuration and where it is read from."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ...core import CommonweightError
from .. import registry
from ..registry import Beside, Method, Range
from ..source import Source
from ..stream import digest, inputs
from ..stream.work import Job, Read, Task
from .models import Models
from .settings import first
from .types import WEIGHT, Input, Recipe, Rule, Slice

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_FIRST = re.compile(r"embed|(^|\.)(wte|wpe)(\.|$)")  # outside of blocks, what comes before them


@dataclass(frozen=True, eq=False)
class Built:
    """tasks: in the order of work; sources: name in the recipe -> model; lead: whose config and tokenizer are taken."""

    recipe: Recipe
    tasks: tuple[Task, ...]
    sources: Mapping[str, Source]
    lead: Path
    blocks: int | None  # of the result, where they differ from the lead's
    notices: tuple[str, ...]
    config: Mapping[str, Any] = field(default_factory=dict)  # what changes in config.json
    forget: tuple[str, ...] = ()  # what goes from it
    tokenizer: str | None = None  # tokenizer.json, where it is not the lead's


class _Out(NamedTuple):
    """A tensor of the result before it has its job: names in the models of its slice."""

    name: str
    part: Slice
    names: Mapping[str, str]
    t: float


def build(recipe: Recipe) -> Built:
    """Raises: CommonweightError for tensors that do not fit, options out of range, models that cannot be read."""
    models = Models(recipe)
    outs = [o for o in _outs(recipe, models) if not any(r.drop and _for(r, o.name) for r in recipe.rules)]
    if not outs:
        raise CommonweightError("recipe: no tensor is left; its rules drop all of them")
    jobs: dict[str, tuple[Job, list[tuple[_Out, list[Read], Read | None]]]] = {}
    made: dict[str, Job] = {}
    for out in outs:
        job, reads, base = _job(recipe, models, out, made)
        jobs.setdefault(job[0], (job[1], []))[1].append((out, reads, base))
    tasks = _tasks(recipe, jobs, [o.name for o in outs])
    whole = len(recipe.slices) == 1 and recipe.slices[0].inputs[0].layers is None
    blocks = None if whole else sum(_depth(s) for s in recipe.slices)
    notices = (*recipe.notices, *models.notices)
    forget = ("quantization_config",)  # the result is not quantised, whatever was read
    words = models.vocabulary
    config = {} if words is None else {"vocab_size": words.rows}
    tokenizer = None if words is None else words.text
    return Built(recipe, tuple(tasks), models.sources, models.lead, blocks, notices, config, forget, tokenizer)


def _outs(recipe: Recipe, models: Models) -> list[_Out]:
    if len(recipe.slices) == 1 and all(i.layers is None for i in recipe.slices[0].inputs):
        part = recipe.slices[0]
        names = _common(recipe, models, [*([recipe.base] if recipe.base else []), *(i.model for i in part.inputs)])
        blocks = 1 + max((b for b in map(inputs.block, names) if b is not None), default=-1)
        users = {*(i.model for i in part.inputs), *([recipe.base] if recipe.base else [])}
        return [_Out(n, part, dict.fromkeys(users, n), _t(inputs.block(n), blocks)) for n in names]
    return _sliced(recipe, models)


def _t(block: int | None, blocks: int) -> float:
    return 0.0 if block is None else block / (blocks - 1) if blocks > 1 else 1.0


def _common(recipe: Recipe, models: Models, users: Sequence[str]) -> list[str]:
    """Names that all of them have; a tensor that is taken from one of them, or dropped, may be missing elsewhere."""
    sources = [models.open(u) for u in dict.fromkeys(users)]
    every = sorted({n for s in sources for n in s.shapes})
    out = []
    for name in every:
        rules = [r for r in recipe.rules if _for(r, name)]
        if any(r.drop for r in rules):
            continue
        if not any(r.take for r in rules):
            for s in sources:
                if name not in s.shapes:
                    has = next(x for x in sources if name in x.shapes)
                    raise CommonweightError(
                        f"{name}: {s.label} has no such tensor, {has.label} has; leave it out by a rule "
                        "(drop: true), take it from one model (take: MODEL), or add it"
                    )
        out.append(name)
    return out


def _sliced(recipe: Recipe, models: Models) -> list[_Out]:
    """Blocks one after the other; what comes before them is the first slice's, what comes after them the last's."""
    out: list[_Out] = []
    offset, total = 0, sum(_depth(s) for s in recipe.slices)
    for i, part in enumerate(recipe.slices):
        lead = part.inputs[0]
        if any(_span(x)[1] - _span(x)[0] != _depth(part) for x in part.inputs):
            raise CommonweightError(f"slices[{i}]: its models have different numbers of layers; give as many of each")
        names = _common(recipe, models, [x.model for x in part.inputs])
        blocks = 1 + max((b for b in map(inputs.block, names) if b is not None), default=-1)
        for x in part.inputs:
            if _span(x)[1] > blocks:
                raise CommonweightError(f"slices[{i}]: {x.model} has {blocks} layers; {_span(x)[1]} are asked for")
        for name in names:
            block = inputs.block(name)
            if block is None:
                if i == (0 if _FIRST.search(name) else len(recipe.slices) - 1):
                    out.append(_Out(name, part, {x.model: name for x in part.inputs}, 0.0))
            elif _span(lead)[0] <= block < _span(lead)[1]:
                at = block - _span(lead)[0]
                mine = {x.model: _renamed(name, _span(x)[0] + at) for x in part.inputs}
                out.append(_Out(_renamed(name, offset + at), part, mine, _t(at, _depth(part))))
        offset += _depth(part)
    assert offset == total
    return out


def _span(x: Input) -> tuple[int, int]:
    assert x.layers is not None
    return x.layers


def _depth(part: Slice) -> int:
    a, b = _span(part.inputs[0])
    return b - a


def _renamed(name: str, block: int) -> str:
    return re.sub(r"(^|\.)(\d+)\.", lambda m: f"{m[1]}{block}.", name, count=1)


def _for(rule: Rule, name: str) -> bool:
    return rule.select.holds(name, inputs.block(name))


def _job(
    recipe: Recipe, models: Models, out: _Out, made: dict[str, Job]
) -> tuple[tuple[str, Job], list[Read], Read | None]:
    rules = [r for r in recipe.rules if _for(r, out.name)]
    taken = next((r.take for r in reversed(rules) if r.take), None)
    if taken is not None:
        source = models.open(taken)
        if out.name not in source.shapes:
            raise CommonweightError(f"{out.name}: a rule takes it from {source.label}, which has no such tensor")
        return _made(registry.get("passthrough"), {}, None, 1, made), [Read(source, out.name)], None
    method = registry.get(next((r.method for r in reversed(rules) if r.method), recipe.method))
    users, base = _roles(recipe, method, out.part, top=method.name == recipe.method)
    if not users:  # a slice that is the base alone
        assert base is not None
        return _made(registry.get("passthrough"), {}, None, 1, made), [_read(models, out, base)], None
    inputs.counts(method, len(users), base is not None)
    shared = [*(r.settings for r in reversed(rules)), out.part.settings, recipe.settings]
    options, weights = _settings(recipe, method, users, shared, rules, out)
    reads = [_read(models, out, u.model) for u in users]
    root = _read(models, out, base) if base else None
    return _made(method, options, weights, len(users), made), reads, root


def _read(models: Models, out: _Out, model: str) -> Read:
    return Read(models.open(model), out.names.get(model, out.name))


def _roles(recipe: Recipe, method: Method, part: Slice, top: bool) -> tuple[list[Input], str | None]:
    """(models, base) as the method takes them."""
    users, base = list(part.inputs), recipe.base
    if recipe.roles:
        others = [x for x in users if x.model != base]
        if method.name == "slerp" and base is not None:  # its first end is the base
            return [Input(base), *others], None
        if method.base == "none":
            return users, None
        return others, base
    return users, None if method.base == "none" and not top else base


def _settings(
    recipe: Recipe, method: Method, users: list[Input], shared: list[Any], rules: list[Rule], out: _Out
) -> tuple[dict[str, Any], Any]:
    options: dict[str, Any] = {}
    for key, (hint, default) in method.options().items():
        limit = registry.limit(hint)
        each = isinstance(limit, Range | Beside) and limit.each
        found = [first([x.settings, *shared], key, out.name, out.t) for x in users]
        if all(v is None for v in found):
            continue
        if isinstance(limit, Beside):
            found = [_path(recipe, v) for v in found]
        if isinstance(found[0], tuple) and all(v is found[0] or v == found[0] for v in found):
            options[key] = [_value(v, out) for v in found[0]]
        elif all(v == found[0] for v in found) and not (isinstance(limit, Beside) and each):
            options[key] = found[0]
        elif each:
            options[key] = [default if v is None else v for v in found]
        else:
            raise CommonweightError(f"{out.name}: {key} of {method.name} is one for all models; {found} came")
    # weights that are for the recipe's method are not forced on a rule's, which may take none
    unused = method.name != recipe.method and "weights" not in inspect.signature(method.function).parameters
    return options, None if unused else _weights(recipe, users, shared, rules, out)


def _weights(recipe: Recipe, users: list[Input], shared: list[Any], rules: list[Rule], out: _Out) -> Any:
    ruled = next((r.weights for r in reversed(rules) if r.weights is not None), None)
    if ruled is not None:
        return [_value(w, out) for w in ruled]
    found = [first([x.settings, *shared], WEIGHT, out.name, out.t) for x in users]
    if all(w is None for w in found):
        return None
    if isinstance(found[0], tuple) and all(w == found[0] for w in found):
        return [_value(w, out) for w in found[0]]
    if recipe.roles and None in found:
        missing = users[found.index(None)].model
        raise CommonweightError(f"{out.name}: the weight of {missing} is missing; give every model one")
    return [1.0 if w is None else w for w in found]


def _value(setting: Any, out: _Out) -> Any:
    from .settings import value

    return value(setting, out.name, out.t)


def _path(recipe: Recipe, found: Any) -> Any:
    if isinstance(found, tuple):
        return tuple(_path(recipe, f) for f in found)
    near = Path(recipe.folder) / found if isinstance(found, str) else None
    return str(near) if near is not None and near.exists() else found


def _made(method: Method, options: Any, weights: Any, n: int, made: dict[str, Job]) -> tuple[str, Job]:
    key = digest.of_value([method.name, options, weights, n])
    if key not in made:
        made[key] = Job(method, inputs.configure(method, options, weights, n))
    return key, made[key]


def _tasks(recipe: Recipe, jobs: Mapping[str, Any], names: Sequence[str]) -> list[Task]:
    blocks = 1 + max((b for b in map(inputs.block, names) if b is not None), default=-1)
    wanted = DTYPES[recipe.dtype] if recipe.dtype else None
    out, copied = [], []
    for job, entries in jobs.values():
        floats: dict[str, Any] = {}
        for made, reads, base in entries:
            lead = base or reads[0]
            for r in reads:
                inputs.same(made.name, lead, r)
            if lead.dtype.is_floating_point:
                floats[made.name] = (reads, base, lead)
            else:
                shape = lead.source.shapes[lead.name]
                at = inputs.places({made.name: shape})[made.name]
                copied.append(Task(at, None, tuple(reads), base, lead.dtype))
        places = inputs.places({n: e[2].source.shapes[e[2].name] for n, e in floats.items()}, blocks)
        out += [
            Task(at, job, tuple(floats[n][0]), floats[n][1], wanted or floats[n][2].dtype) for n, at in places.items()
        ]
    return out + copied
