"""From a recipe to tasks: every tensor of the result with its method, its configuration and where it is read from."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...core import CommonweightError
from .. import registry
from ..architecture.check import Model
from ..architecture.resized import Block
from ..architecture.stacks import lengths
from ..inputs import checks as inputs
from ..inputs.models import Models
from ..plan import config
from ..plan.built import Built
from ..plan.described import check
from ..plan.frame import frame
from ..plan.places import Out, order, outs, whole
from ..plan.rules import idle
from ..registry import Beside, Method, Range
from ..schema.settings import first, value
from ..schema.types import DTYPES, WEIGHT, Input, Recipe, Rule
from ..sources.at import places
from ..sources.source import Read, read_json
from ..stream import beside, digest
from ..stream.work import Job, Task
from ..upcycle.build import build as upcycled
from ..vocabulary import tokens as vocabulary
from ..vocabulary.special import renumbered


def build(recipe: Recipe) -> Built:
    """Raises: CommonweightError for tensors that do not fit, options out of range, models that cannot be read."""
    if recipe.mixture is not None:
        return upcycled(recipe)
    models = Models(recipe)
    stated = config.read(models.lead)
    blocks = () if whole(recipe) else order(recipe)
    framed = None if whole(recipe) else frame(stated, models.names())
    found = outs(recipe, models, framed)
    kept = [o for o in found if not o.ruled.drop]
    if not kept:
        raise CommonweightError("recipe: no tensor is left; its rules drop all of them")
    jobs: dict[str, tuple[Job, list[tuple[Out, list[Read], Read | None]]]] = {}
    made: dict[str, Job] = {}
    for out in kept:
        job, reads, base = _job(recipe, models, out, made)
        jobs.setdefault(job[0], (job[1], []))[1].append((out, reads, base))
    tasks = tuple(_tasks(recipe, models, jobs, [o.name for o in kept]))
    words = models.vocabulary
    rows = None if words is None else words.rows
    placed = [Block(models.config(m) or stated or {}, i) for m, i in blocks]
    said, told = None, list[str]()
    if stated is not None:
        said = config.made(stated, tasks, framed, placed, rows, models.untied)
        if models.numbers is not None:
            said, lost = renumbered(said, *models.numbers)
            told += [f"config.json: the tokenizer has no token of {', '.join(lost)}; its number stays"] if lost else []
        told += check(said, tasks, Model(stated, models.leader.shapes), framed, placed, rows)
    return Built(
        recipe, tasks, models.sources, models.lead,
        (*recipe.notices, *models.notices, *(framed.notices if framed else ()), *_apart(recipe, models),
         *idle(recipe, [o.ruled for o in found]), *beside.check(tasks), *told),
        said, None if words is None else words.text, tuple(models.hub), models.words,
        _generation(models),
    )  # fmt: skip


def _generation(models: Models) -> dict[str, Any] | None:
    """The lead's generation_config.json, where its tokens have other numbers in the result."""
    if models.numbers is None or not (found := read_json(models.lead / "generation_config.json")):
        return None
    return renumbered(found, *models.numbers)[0]


def _apart(recipe: Recipe, models: Models) -> list[str]:
    """What is to be told of vocabularies of which no row is mapped."""
    if recipe.vocabulary is not None:
        return []
    try:
        return vocabulary.unlike({n: s.files[0].parent for n, s in models.sources.items() if s.files})
    except CommonweightError as e:
        return [f"{e}; whether the vocabularies are the same is not known"]


def _job(
    recipe: Recipe, models: Models, out: Out, made: dict[str, Job]
) -> tuple[tuple[str, Job], list[Read], Read | None]:
    rules = out.ruled.rules
    if out.ruled.take is not None:
        return _made(registry.get("passthrough"), {}, None, 1, made), [_read(models, out, out.ruled.take)], None
    method = registry.get(out.ruled.method or recipe.method)
    users, base = _roles(recipe, models, method, out)
    if not users:  # a slice that is the base alone
        assert base is not None
        return _made(registry.get("passthrough"), {}, None, 1, made), [_read(models, out, base)], None
    inputs.counts(method, len(users), base is not None)
    shared = [*(r.settings for r in reversed(rules)), out.part.settings, recipe.settings, recipe.defaults]
    options, weights = _settings(recipe, method, [x for x, _ in users], shared, rules, out)
    reads = [_read(models, out, x.model, name) for x, name in users]
    root = _read(models, out, base) if base else None
    return _made(method, options, weights, len(users), made), reads, root


def _read(models: Models, out: Out, model: str, name: str | None = None) -> Read:
    source, name = models.open(model), name or out.of(model)
    if name not in source.shapes:
        raise CommonweightError(f"{out.name}: it is read from {name} of {source.label}, which has no such tensor")
    return Read(source, name)


def _roles(recipe: Recipe, models: Models, method: Method, out: Out) -> tuple[list[tuple[Input, str]], str | None]:
    """(models with the tensor's name in them, base) as the method takes them.

    A base that the recipe's method does not take is an error there, unless adapters or tenants stand on it.
    """
    users, base = list(zip(out.part.inputs, out.names)), recipe.base
    if recipe.roles:
        others = [(x, name) for x, name in users if x.model != base]
        if method.name == "slerp" and base is not None:  # its first end is the base
            return [(Input(base), out.of(base)), *others], None
        if method.base == "none":
            return users, None
        return others, base
    idle = method.name != recipe.method or any(models.stands(x.model) for x, _ in users)
    return users, None if method.base == "none" and idle else base


def _settings(
    recipe: Recipe, method: Method, users: list[Input], shared: list[Any], rules: Sequence[Rule], out: Out
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
            raise CommonweightError(
                f"{out.name}: {key} of {method.name} is one value for all models, and {found} were given"
            )
    # weights that are for the recipe's method are not forced on a rule's, which may take none
    unused = method.name != recipe.method and "weights" not in inspect.signature(method.function).parameters
    return options, None if unused else _weights(recipe, users, shared, rules, out)


def _weights(recipe: Recipe, users: list[Input], shared: list[Any], rules: Sequence[Rule], out: Out) -> Any:
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


def _value(setting: Any, out: Out) -> Any:
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


def _tasks(recipe: Recipe, models: Models, jobs: Mapping[str, Any], names: Sequence[str]) -> list[Task]:
    blocks = lengths(names)
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
                copied.append(Task(places({made.name: shape})[made.name], None, tuple(reads), base, lead.dtype))
        placed = places({n: e[2].source.shapes[e[2].name] for n, e in floats.items()}, blocks)
        out += [
            Task(at, job, tuple(floats[n][0]), floats[n][1], wanted or models.dtype(floats[n][2]))
            for n, at in placed.items()
        ]
    return out + copied
