"""Searching a merge's numbers against an evaluation: budgeted, paused and resumed, the same whatever was interrupted.

Evolutionary Optimization of Model Merging Recipes (arXiv 2403.13187): CMA-ES over weights and densities, whole or by
blocks (its parameter space), or over a path through the models' layers (its data-flow space, `dataflow`). Optuna's TPE
in its place takes words too: which method, which model. Whole recipes are searched by `tuning`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from ...core import CommonweightError, unknown
from ...formats import atomic
from ...workers import Workers
from ..inputs import checks as inputs
from ..inputs.given import given
from ..registry import Method, depths, get

Space = Mapping[str, Sequence[Any]]  # name -> (low, high), or words to choose among (engine="optuna")
Point = dict[str, Any]
Map = Callable[[Callable[[Point], float], Iterable[Point]], Iterable[float]]
Engine = Literal["cmaes", "optuna"]


@dataclass(frozen=True)
class Found:
    """The best point and its score; history: every (point, score) in the order of asking."""

    best: Point
    score: float
    history: list[tuple[Point, float]]


def tune(
    evaluate: Callable[[Point], float],
    space: Space,
    *,
    budget: int = 64,
    start: Point | None = None,
    sigma: float = 0.2,
    population: int | None = None,
    seed: int = 0,
    log: str | Path | None = None,
    about: Mapping[str, str] | None = None,
    run: Map = map,
    engine: Engine = "cmaes",
) -> Found:
    """The point of a box with the highest evaluate(point), by CMA-ES, after at most `budget` evaluations.

    space: name -> (low, high); start: the first mean (else the middle), itself evaluated first. log: a JSON file
    of the scores so far, written after each of them; a search with the same space, seed and log goes on from there
    and ends with the same result as one that was never interrupted, also with a larger budget. about: what else the
    scores depend on (name -> digest, of models and rows, say): a log with another one is refused. run: maps the
    evaluation over a generation's points, in order: another `map` runs them side by side. A score that is no number is
    the worst.
    engine="optuna": its TPE sampler, which takes words beside numbers; population: points that are asked for before a
    score is told (1); sigma has no meaning there.
    Raises: CommonweightError when the space is empty or upside down, the log is another search's, or the engine's
    package is missing.
    """
    check(space, budget, engine)
    box = {n: [v if isinstance(v, str) else float(v) for v in space[n]] for n in space}
    mark: dict[str, Any] = {"space": box, "seed": seed, "sigma": sigma, "start": start, "population": population}
    mark |= about or {}
    if engine != "cmaes":
        mark["engine"] = engine
    path, known = (None, []) if log is None else (Path(log), _known(Path(log), mark))
    history: list[tuple[Point, float]] = []
    generations = _ENGINES[engine](space, start, sigma, population, seed)
    points = next(generations)

    def tell() -> None:
        if path is not None:
            told = {**mark, "scores": [s if math.isfinite(s) else None for _, s in history]}
            atomic.write(path, json.dumps(told, indent=1).encode())

    while len(history) < budget:
        points = points[: budget - len(history)]
        scores = known[len(history) : len(history) + len(points)]
        left = points[len(scores) :]
        history += zip(points, scores)
        for point, score in zip(left, run(evaluate, left)):
            scores.append(float(score) if math.isfinite(score) else -math.inf)
            history.append((point, scores[-1]))
            tell()
        if len(scores) != len(points):
            raise CommonweightError(f"{len(scores)} scores came back for {len(points)} points; run must keep them all")
        points = generations.send(scores)
    best, score = max(history, key=lambda pair: pair[1])
    return Found(best, score, history)


def _generations(space: Space, start: Point | None, sigma: float, population: int | None, seed: int) -> Any:
    """Yields lists of points, takes lists of their scores; the first list is the start alone."""
    try:
        import cmaes
        import numpy as np
    except ImportError as e:
        raise CommonweightError(f"searching needs {e.name}; install commonweight[search]") from e
    names = list(space)
    low = np.array([space[n][0] for n in names])
    wide = np.array([space[n][1] - space[n][0] for n in names])
    mean = np.full(len(names), 0.5) if start is None else (np.array([start[n] for n in names]) - low) / wide
    size = max(2, len(names))  # the library wants two dimensions; a second one that nobody reads does no harm
    mean = np.concatenate([mean, np.full(size - len(names), 0.5)])
    bounds = np.stack([np.zeros(size), np.ones(size)], 1)
    cma = cmaes.CMA(mean=mean, sigma=sigma, bounds=bounds, seed=seed, population_size=population)

    def point(x: Any) -> Point:
        return {n: float(low[i] + wide[i] * x[i]) for i, n in enumerate(names)}

    yield [point(mean)]
    while True:
        asked = [cma.ask() for _ in range(cma.population_size)]
        scores = yield [point(x) for x in asked]
        if len(scores) == len(asked):
            worst = min((s for s in scores if math.isfinite(s)), default=0.0)
            cma.tell([(x, -(s if math.isfinite(s) else worst - 1.0)) for x, s in zip(asked, scores)])


def _trials(space: Space, start: Point | None, sigma: float, population: int | None, seed: int) -> Any:
    """As _generations, by Optuna."""
    try:
        import optuna
    except ImportError as e:
        raise CommonweightError("searching with optuna needs Optuna; install commonweight[search]") from e
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed))
    study.enqueue_trial(start or {n: v[0] if words(v) else (v[0] + v[1]) / 2 for n, v in space.items()})
    count = 1
    while True:
        trials = [study.ask() for _ in range(count)]
        points = [
            {n: t.suggest_categorical(n, list(v)) if words(v) else t.suggest_float(n, *v) for n, v in space.items()}
            for t in trials
        ]
        scores = yield points
        for trial, score in zip(trials, scores):
            bad = not math.isfinite(score)
            study.tell(trial, None if bad else score, state=optuna.trial.TrialState.FAIL if bad else None)
        count = population or 1


_ENGINES = {"cmaes": _generations, "optuna": _trials}


def words(limits: Sequence[Any]) -> bool:
    """Whether a space's entry is a choice among words."""
    return bool(limits) and all(isinstance(v, str) for v in limits)


def side_by_side(run: Workers) -> Map:
    """What `tune` takes as `run`, from workers: processes of this machine or a Ray cluster. In the order of points."""

    def mapped(evaluate: Callable[[Point], float], points: Iterable[Point]) -> Iterable[float]:
        waiting: dict[int, float] = {}
        for place, score in run(evaluate, list(points)):
            waiting[place] = score
        return [waiting[i] for i in sorted(waiting)]

    return mapped


def check(space: Space, budget: int = 1, engine: str = "cmaes") -> None:
    """Raises: CommonweightError for a space, a budget or an engine that `tune` does not take."""
    if engine not in _ENGINES:
        raise unknown("search engine", str(engine), _ENGINES)
    if not space:
        raise CommonweightError("nothing to search: the space has no numbers; give name -> (low, high)")
    for name, pair in space.items():
        if words(pair) and engine == "cmaes":
            raise CommonweightError(f"{name}: cmaes searches numbers, not {', '.join(pair)}; take engine optuna")
        number = len(pair) == 2 and all(isinstance(v, int | float) and math.isfinite(v) for v in pair)
        if not words(pair) and (not number or pair[0] >= pair[1]):
            raise CommonweightError(f"{name}: the space has {tuple(pair)}; wanted (low, high), low below high")
    if budget < 1:
        raise CommonweightError(f"budget is {budget}; at least one evaluation is needed")


def _known(path: Path, about: Mapping[str, Any]) -> list[float]:
    if not path.exists():
        return []
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        scores = [-math.inf if s is None else float(s) for s in told.pop("scores")]
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise CommonweightError(f"{path}: not the log of a search ({e}); delete it, or name another file") from e
    now = json.loads(json.dumps(about))
    if odd := [k for k in {**now, **told} if told.get(k) != now.get(k)]:
        raise CommonweightError(
            f"{path}: the log of another search: {', '.join(odd)} differ; give it what it had to go on, or delete the "
            "log (or name another) to search anew"
        )
    return scores


def blocks(names: Iterable[str], count: int) -> dict[str, int]:
    """Tensor name -> group: blocks cut into `count` runs; tensors outside of blocks are a last group of their own."""
    return {n: count if d is None else d[0] * count // d[1] for n, d in depths(names).items()}


def merge_with(
    method: str | Method,
    models: Sequence[Any],
    base: Any,
    point: Point,
    *,
    groups: int = 0,
    **options: Any,
) -> dict[str, Tensor]:
    """The merge that a point of merge_space() describes: each group of tensors with its own numbers."""
    found = get(method) if isinstance(method, str) else method
    if not groups:
        return found(models, base, **options, **_options(point, "", len(models)))
    sources, root, dtypes = given(models, base, found.base != "none")
    inputs.counts(found, len(sources), root is not None)
    names = inputs.names([root, *sources] if root else sources)
    where, out = blocks(names, groups), {}
    for group in sorted(set(where.values())):
        mine = [n for n, g in where.items() if g == group]
        parts = [{n: s.read(n) for n in mine} for s in sources]
        start = None if root is None else {n: root.read(n) for n in mine}
        out.update(found(parts, start, **options, **_options(point, f"{group}.", len(models))))
    return {n: out[n] if options.get("dtype") else out[n].to(dtypes[n]) for n in names}


def _options(point: Point, prefix: str, n: int) -> dict[str, Any]:
    """{"weights": [..], "density": [..]} from {"weights.0": .., "density.1": ..} (after a group's prefix)."""
    mine = {k.removeprefix(prefix): v for k, v in point.items() if k.startswith(prefix)}
    out: dict[str, Any] = {k: v for k, v in mine.items() if "." not in k}
    for name in sorted({k.split(".")[0] for k in mine if "." in k}):
        out[name] = [mine[f"{name}.{i}"] for i in range(n)]
    return out


def merge_space(n: int, options: Space, *, groups: int = 0, each: Sequence[str] = ("weights",)) -> Space:
    """The box of a merge of `n` models: `each` of these options once a model, all of them once a group of tensors
    (`groups` runs of blocks and one for the rest; 0: the same numbers everywhere)."""
    one = {
        f"{k}.{i}" if k in each else k: limits for k, limits in options.items() for i in range(n if k in each else 1)
    }
    return {f"{g}.{k}": limits for g in range(groups + 1) for k, limits in one.items()} if groups else one


def tune_merge(
    evaluate: Callable[[dict[str, Tensor]], float],
    method: str | Method,
    models: Sequence[Any],
    base: Any = None,
    *,
    space: Mapping[str, tuple[float, float]],
    each: Sequence[str] = ("weights",),
    groups: int = 0,
    fixed: Mapping[str, Any] | None = None,
    **how: Any,
) -> tuple[dict[str, Tensor], Found]:
    """The merge with the highest evaluate(state dict), and how it was found. space: an option's name -> (low, high).

    each: options with a number for every model; groups: runs of blocks with their own numbers. how: as in tune().
    Cost: budget merges and evaluations.
    """
    box = merge_space(len(models), space, groups=groups, each=each)

    def build(point: Point) -> dict[str, Tensor]:
        return merge_with(method, models, base, point, groups=groups, **(fixed or {}))

    found = tune(lambda point: evaluate(build(point)), box, **how)
    return build(found.best), found
