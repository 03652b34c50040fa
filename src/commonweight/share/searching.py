"""Searching among many models: by Optuna, with one measure or several."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ..core import CommonweightError, unknown

Choice = dict[str, Any]


@dataclass(frozen=True)
class Found:
    """trials: (choice, measures) in the order in which they were asked for. front: those of them that no other one is
    better than in every measure. minimise: of each measure, whether less is better."""

    trials: list[tuple[Choice, tuple[float, ...]]] = field(repr=False)
    front: list[tuple[Choice, tuple[float, ...]]]
    minimise: tuple[bool, ...]

    @property
    def best(self) -> Choice:
        """Of one measure alone. Raises: CommonweightError of several."""
        if len(self.minimise) != 1:
            raise CommonweightError(f"{len(self.minimise)} measures have no best; see front, {len(self.front)} choices")
        return self.front[0][0]

    def hypervolume(self, reference: tuple[float, float], trials: int | None = None) -> float:
        """The area between the reference and the front of the first so many trials, of two measures."""
        turned = [tuple(v if m else -v for v, m in zip(values, self.minimise)) for _, values in self.trials[:trials]]
        x0, y0 = (v if m else -v for v, m in zip(reference, self.minimise))
        area, lowest = 0.0, y0
        for x, y in sorted(turned):
            if x < x0 and y < lowest:
                area, lowest = area + (x0 - x) * (lowest - y), y
        return area


def search(
    space: Mapping[str, Sequence[Any]],
    measure: Callable[[Choice], float | Sequence[float]],
    *,
    trials: int,
    directions: Sequence[Literal["minimize", "maximize"]] = ("maximize",),
    engine: Literal["gp", "tpe", "nsga2"] = "tpe",
    first: Sequence[Choice] = (),
    seed: int = 0,
) -> Found:
    """Asks `measure` for so many choices from a space, and gives the front of what it said.

    space: {name: values}; numbers are taken in their order. measure: choice -> one number, or one for each direction,
    such as (parameters, score) of a model that was made, or chosen (`share.choose`), and healed for a little. engine:
    Optuna's samplers: gp, a Gaussian process with expected (hypervolume) improvement; tpe; nsga2, evolution. first:
    choices that are asked for first. A choice that comes again is not measured again. The same seed gives the same
    trials. Cost: `trials` measures. Raises: CommonweightError without Optuna, and for a space without values.
    """
    optuna = _optuna()
    empty = [n for n, values in space.items() if not len(values)]
    if empty or not space:
        raise CommonweightError(f"space: {empty[0] + ' has no values' if empty else 'nothing to choose'}")
    if trials < 1 or not directions or set(directions) - {"minimize", "maximize"}:
        raise CommonweightError(
            f"trials={trials}, directions={tuple(directions)}; wanted at least one of each, minimize or maximize"
        )
    for choice in first:
        if wrong := [n for n, v in choice.items() if n not in space or v not in space[n]]:
            raise CommonweightError(f"first: {wrong[0]}={choice[wrong[0]]!r} is not in the space")
    samplers = {
        "gp": lambda: optuna.samplers.GPSampler(seed=seed, deterministic_objective=True),
        "tpe": lambda: optuna.samplers.TPESampler(seed=seed, multivariate=False),
        "nsga2": lambda: optuna.samplers.NSGAIISampler(seed=seed, population_size=max(4, min(50, trials // 4))),
    }
    if engine not in samplers:
        raise unknown("engine", engine, samplers)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study = optuna.create_study(directions=list(directions), sampler=samplers[engine]())
    numbers = {n: all(isinstance(v, int | float) for v in values) for n, values in space.items()}
    for choice in first:
        study.enqueue_trial({n: list(space[n]).index(v) if numbers[n] else v for n, v in choice.items()})
    known: dict[tuple[Any, ...], tuple[float, ...]] = {}
    asked: list[tuple[Choice, tuple[float, ...]]] = []

    def objective(trial: Any) -> tuple[float, ...]:
        choice = {}
        for name, values in space.items():
            if numbers[name]:
                choice[name] = values[trial.suggest_int(name, 0, len(values) - 1)]
            else:
                choice[name] = trial.suggest_categorical(name, list(values))
        key = tuple(choice.values())
        if key not in known:
            got = measure(choice)
            known[key] = tuple(map(float, got)) if isinstance(got, Sequence) else (float(got),)
            if len(known[key]) != len(directions):
                raise CommonweightError(f"measure gave {len(known[key])} numbers for {len(directions)} directions")
        asked.append((choice, known[key]))
        return known[key]

    study.optimize(objective, n_trials=trials)
    minimise = tuple(d == "minimize" for d in directions)
    return Found(asked, _front(asked, minimise), minimise)


def _front(asked: list[tuple[Choice, tuple[float, ...]]], minimise: tuple[bool, ...]) -> list[Any]:
    turned = [tuple(v if m else -v for v, m in zip(values, minimise)) for _, values in asked]
    out, seen = [], set()
    for (choice, values), mine in zip(asked, turned):
        beaten = any(all(o <= m for o, m in zip(other, mine)) and other != mine for other in turned)
        if not beaten and (key := tuple(choice.values())) not in seen:
            seen.add(key)
            out.append((choice, values))
    return sorted(out, key=lambda one: one[1])


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as e:
        raise CommonweightError("searching needs Optuna: pip install 'commonweight[search]'") from e
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
