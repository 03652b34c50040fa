"""A stream of tasks: each is learned when it comes, by adapt's own loop; what is carried over lies in a store."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..adapt.added import behind
from ..adapt.checkpoint import Store
from ..adapt.data import Data, Understood, make_task, named, reading
from ..adapt.job import Source
from ..adapt.recipe import Recipe
from ..adapt.settings import of_all, of_rows
from ..adapt.tasks.base import Example
from ..adapt.together import beside
from ..adapt.train import understand
from ..adapt.trainer import Part, Progress
from ..commons import Commons
from ..core import CommonweightError, build, dump, safe, unknown
from ..host import Host
from ..methods import resolve as adapter_of
from . import methods, record, state
from .asks import Carried, Learned, Stage, head
from .bodies import fresh, load, publish, put
from .page import render
from .registry import Method
from .training import train

TASKS = "classify", "lm"
PROBE = "row-by-row"


@dataclass(frozen=True)
class Stream:
    """What came of a stream. record: all that ``stream.json`` holds: stages, tenants, scores, bytes. scores: a row for
    each stage, a column for each task. summary: see `metrics.summary`; {} where nothing was measured."""

    store: Commons
    folder: Path
    record: Mapping[str, Any]

    @property
    def scores(self) -> list[list[float | None]]:
        return record.scores(self.record)

    @property
    def summary(self) -> dict[str, float | None]:
        return record.summary(self.record)

    @property
    def tenants(self) -> dict[str, str]:
        """Who answers each task now: the label in the store."""
        stages = self.record["stages"]
        return dict(stages[-1]["tenants"]) if stages else {}


def learn(
    host: Host,
    tasks: Mapping[str, Data],
    store: str | Path | Commons,
    *,
    method: str = "sequential",
    options: Mapping[str, Any] | None = None,
    task: str = "classify",
    sites: Any = None,
    name: str = "stream",
    evals: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
    tokenizer: Any = None,
    resume: bool = False,
    say: Callable[[str], None] = lambda _: None,
    progress: Callable[[Progress], None] | None = None,
    **recipe: Any,
) -> Stream:
    """Learns tasks in their order, with one method of `lifelong.available`. Each task becomes a tenant in the store.

    tasks: name -> its rows; a task's tenant has its own head. options: of the method; of one whose adapter can be
    chosen also ``adapter`` and that adapter's own. evals: rows to measure by task; then every stage measures all tasks
    so far, and the next one, and writes ``report.html``. name: of the stream in its store. resume: goes on with a
    stream that was killed, to the same bits, or that has further tasks now. recipe: fields of `Recipe`, of each stage.
    Cost: a training a task, as `adapt`; what the method adds stands in its docstring.
    Raises: CommonweightError; what was learned before stays in the store.
    """
    found, config = methods.resolve(method, options or {})
    numbers = build(Recipe, recipe)
    check(found, task)
    given = understand(host, tasks, task, numbers, tokenizer)
    held = {}
    for n, rows in (evals or {}).items():
        if n not in tasks:
            raise unknown("task to measure", n, tasks)
        held[n] = examples(host, task, tasks[n], given[n], rows, f"eval rows of {n}", numbers, tokenizer)
    kept = store if isinstance(store, Commons) else Commons(store, make="late")
    return follow(
        host, given, held, found, config, kept, task=task, sites=sites, name=name, recipe=numbers, resume=resume,
        say=say, progress=progress,
    )  # fmt: skip


def check(method: Method, task: str) -> None:
    """Raises: CommonweightError for a task that the method cannot learn."""
    if task not in TASKS:
        raise CommonweightError(
            f"a stream of the task {task}: wanted {' or '.join(TASKS)}; train such tenants one by one"
        )
    if task not in method.tasks:
        able = ", ".join(n for n, m in methods.available().items() if task in m.tasks)
        raise CommonweightError(f"{method.name} learns no stream of the task {task}; take one of {able}")


def examples(
    host: Host,
    task: str,
    data: Data | Source,
    given: Understood,
    rows: Any,
    where: str,
    recipe: Recipe,
    tokenizer: Any = None,
) -> list[Example]:
    """Rows to measure on, as examples. Raises: CommonweightError that says whose they are."""
    doing = make_task(host, task, given.task.labels, tokenizer, recipe.max_length, **reading(data))
    return named(where, doing.examples, list(rows))


def follow(
    host: Host,
    given: Mapping[str, Understood],
    evals: Mapping[str, Sequence[Example]],
    found: Method,
    config: Any,
    store: Commons,
    *,
    task: str,
    sites: Any,
    name: str,
    recipe: Recipe,
    resume: bool,
    say: Callable[[str], None],
    progress: Callable[[Progress], None] | None,
    gone: frozenset[str] = frozenset(),
) -> Stream:
    """`learn` from the examples on. gone: tasks that were learned, of which there are no rows any more."""
    for n in (name, *given):
        safe(n)
    folder = record.folder_of(store, name)
    adapter, options = found.adapter(config)
    adapter_of(adapter, options)
    known = beginning(host, given, found, config, adapter, options, task, sites, name, recipe)
    told = record.opened(folder, known, resume=resume)
    if len(told["stages"]) > len(given):
        raise CommonweightError(
            f"{folder}: {len(told['stages'])} tasks were learned, {', '.join(s['task'] for s in told['stages'])}, and "
            f"here are {len(given)}; name them all, in that order, and further ones behind"
        )
    for done, (n, u) in zip(told["stages"], given.items()):
        record.same_rows(folder, done, n, done["rows"] if n in gone else rows_of(u))
    reads = placed(host, found, config, sites)
    held = {f"eval rows of {n}": rows for n, rows in evals.items()}
    held |= {f"rows of {n}": [*u.train, *u.dev] for n, u in given.items()}
    ahead(host, adapter, options, reads, recipe, held)
    store = Commons(store.folder)
    goes_on = told["stages"][-1:] if len(told["stages"]) < len(given) else []
    unmeasured = [s for s in told["stages"] if s.get("scores") is None] if evals else []
    record.answered(folder, [*goes_on, *unmeasured], store)
    record.write(folder, told)
    for done in told["stages"]:  # what a kill left
        shutil.rmtree(beside(store.folder, name, done["task"]), ignore_errors=True)
    state.drop(folder, before=len(told["stages"]) - 1)
    tasks = {n: u.task for n, u in given.items()}
    carried: Carried | None = None

    def stage_of(t: int) -> Stage:
        names = [*given]
        n, so_far = names[t], names[: t + 1]
        return Stage(
            host, n, t, config, adapter, options, reads, given[n].task, given[n].train, given[n].dev, recipe,
            {k: tasks[k] for k in so_far}, {k: given[k].train for k in names[:t] if k not in gone}, t == len(names) - 1,
        )  # fmt: skip

    for t, (n, u) in enumerate(given.items()):
        if t >= len(told["stages"]):
            if carried is None:
                carried = restored(host, store, folder, told)
            stage = stage_of(t)
            checkpoint = beside(store.folder, name, n)
            carried, steps, seconds, dev = driven(found, stage, carried, checkpoint, resume, progress)
            labels = publish(host, store, carried.tenants) if carried.tenants else {}
            size = state.write(folder, t, carried.tensors, carried.facts, carried.rows)
            told["stages"].append(
                {
                    "task": n, "tenants": labels, "rows": rows_of(u), "steps": steps, "seconds": round(seconds, 2),
                    "dev": dev, "memory": {k: len(v) for k, v in carried.rows.items()},
                    "bytes": record.spent(store, [*labels.values()], size),
                }
            )  # fmt: skip
            record.write(folder, told)
            shutil.rmtree(checkpoint, ignore_errors=True)
            state.drop(folder, before=t)
        if evals and (told["stages"][t].get("scores") is None):
            measure(stage_of(t), found, store, told, given, evals, recipe)
            record.write(folder, told)
        say(line(told["stages"][t], told["better"][0]))
    path = record.write(folder, told)
    if evals:
        (folder / record.PAGE).write_bytes(render({name: record.read(folder)}).encode())
    return Stream(store, path.parent, record.read(folder))


def beginning(
    host: Host, given: Mapping[str, Understood], found: Method, config: Any, adapter: str, options: Mapping[str, Any],
    task: str, sites: Any, name: str, recipe: Recipe,
) -> dict[str, Any]:  # fmt: skip
    """The record of a stream that has learned nothing."""
    own = dump(config)
    own.pop("is")
    first = next(iter(given.values()))
    part = Part(None, first.task, [], [])  # type: ignore[arg-type]
    about = of_all(host.model, host.fingerprint, part, recipe)
    where = sites if sites is None or isinstance(sites, str) else "chosen by a function"
    return {
        "format": 1, "name": name, "method": found.name, "paper": found.paper, "adapter": adapter,
        "adapter_options": dict(options), "carries": found.carries, "keeps": found.rows, "task": task,
        "better": list(first.task.better), "tasks": [*given], "stages": [], "untrained": {},
        "settings": {**about, "method": found.name, "options": own, "sites": where},
    }  # fmt: skip


def placed(host: Host, found: Method, config: Any, sites: Any) -> Any:
    """The sites of a method that reads certain ones alone, where nobody names others."""
    if sites is None and found.where is not None:
        own = host.base.sites_for(adapter_of(*found.adapter(config))[0])
        taken = {s.name for s in found.where(config, own)}
        return lambda name, _: name in taken
    if sites is not None or not found.roles:
        return sites
    mine = {s.name for s in host.base.chosen if s.role in found.roles}
    if not mine:
        raise CommonweightError(f"{found.name}: the model has no {' or '.join(found.roles)} projection; name sites")
    return lambda name, _: name in mine


def ahead(
    host: Host, adapter: str, options: Mapping[str, Any], sites: Any, recipe: Recipe,
    rows: Mapping[str, Sequence[Example]],
) -> None:  # fmt: skip
    """Raises: CommonweightError for a row of any task that is too long behind the prompts of the first one's tenant."""
    tenant = host.add(PROBE, adapter, sites=sites, seed=recipe.seed, **options)
    try:
        behind(host, tenant, rows)
    finally:
        host.remove(PROBE)


def rows_of(u: Understood) -> dict[str, Any]:
    found = of_rows(Part(None, u.task, u.train, u.dev))  # type: ignore[arg-type]
    return {**found, "labels": None if found["labels"] is None else list(found["labels"])}


def restored(host: Host, store: Commons, folder: Path, told: Mapping[str, Any]) -> Carried:
    """What the last stage carried over, from the store."""
    if not told["stages"]:
        return Carried()
    last = told["stages"][-1]
    tensors, facts, rows = state.read(folder, len(told["stages"]) - 1, last["memory"])
    tenants = {n: load(host, store, label, n) for n, label in last["tenants"].items()}
    return Carried(tenants, tensors, facts, rows)


def driven(
    found: Method, stage: Stage, carried: Carried, checkpoint: Path, resume: bool, progress: Any
) -> tuple[Carried, int, float, dict[str, float]]:
    """(what is carried over, steps, seconds, dev metrics of the last training). Each training of a stage has its own
    checkpoints, which stay until the stage is in the store."""
    run, answer, steps, seconds, dev, k = found.stage(stage, carried), None, 0, 0.0, {}, 0
    while True:
        try:
            ask = run.send(answer) if answer is not None else next(run)
        except StopIteration as e:
            return e.value, steps, seconds, dev
        at = checkpoint / str(k)
        answer = train(stage, ask, at, resume or Store(at).newest() is None, progress)
        steps, seconds, k = steps + answer.steps, seconds + answer.seconds, k + 1
        dev = dict(answer.metrics) if ask.name is None else dev


def measure(
    stage: Stage, found: Method, store: Commons, told: dict[str, Any], given: Mapping[str, Understood],
    evals: Mapping[str, Sequence[Example]], recipe: Recipe,
) -> None:  # fmt: skip
    """Scores of every task so far, and of the next one, by what the store holds; and before any training."""
    host, metric, names = stage.host, told["better"][0], [*given]
    here = told["stages"][stage.number]
    labels = here["tenants"]
    if not labels:
        return
    out: dict[str, float] = {}
    held = {n: load(host, store, label, n) for n, label in labels.items()}
    for n in names[: stage.number + 1]:
        if n in evals and n in held:
            out[n] = score(host, n, held[n], given[n].task, evals[n], metric, recipe)
    for n in names[stage.number + 1 : stage.number + 2]:
        if n in evals:
            plain = fresh(stage, {}, n, given[n].task.labels, given[n].train)
            told["untrained"][n] = score(host, n, plain, given[n].task, evals[n], metric, recipe)
            out[n] = score(host, n, unseen(held, plain, stage.name, found), given[n].task, evals[n], metric, recipe)
    here["scores"] = out
    folder = record.folder_of(store, told["name"])
    if found.pick is not None and state.there(folder, stage.number):  # of earlier stages it is gone
        tensors, facts, rows = state.read(folder, stage.number, here["memory"])
        there = {n: rows for n, rows in evals.items() if n in held}
        here["untold"] = untold(stage, found, Carried(held, tensors, facts, rows), there, given, recipe)


def untold(
    stage: Stage, found: Method, carried: Carried, evals: Mapping[str, Sequence[Example]],
    given: Mapping[str, Understood], recipe: Recipe,
) -> dict[str, float]:  # fmt: skip
    """Accuracy where nobody tells the task: a row that is given to another task's tenant counts as wrong."""
    assert found.pick is not None
    out = {}
    for n, rows in evals.items():
        picked = found.pick(stage, carried, rows)
        mine = [r for r, p in zip(rows, picked) if p == n]
        right = score(stage.host, n, carried.tenants[n], given[n].task, mine, "accuracy", recipe) if mine else 0.0
        out[n] = right * len(mine) / len(rows)
    return out


def unseen(held: Mapping[str, Learned], plain: Learned, newest: str, found: Method) -> Learned:
    """Who answers a task before it comes: the newest tenant, with the head of the last task of the same classes, or an
    untrained one."""
    if not found.goes_on:
        return plain
    alike = [t for t in held.values() if t.labels == plain.labels]
    new = held[newest]
    return new._replace(labels=plain.labels, pools={**{k: v for k, v in new.pools.items() if k not in head(new)},
                                                   **head(alike[-1] if alike else plain)})  # fmt: skip


def score(
    host: Host, name: str, tenant: Learned, task: Any, rows: Sequence[Example], metric: str, recipe: Recipe
) -> float:
    put(host, name, tenant)
    host.model.eval()
    try:
        with torch.no_grad(), host.route(name):
            return float(task.measure(host.model, rows, recipe.eval_rows)[metric])
    finally:
        host.remove(name)


def line(stage: Mapping[str, Any], metric: str) -> str:
    """One line per stage; its form does not change, scripts may read it."""
    found = stage.get("scores") or {}
    so_far = [n for n in stage["tenants"] if n in found]
    told = f", {metric} " + ", ".join(f"{n} {found[n]:.4f}" for n in so_far) if so_far else ""
    return f"{stage['task']}: {stage['steps']:,} steps, {stage['bytes']['all']:,} bytes{told}"
