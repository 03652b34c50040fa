"""The tuning budget: trials of a learning rate, stopped early by successive halving. The search is Optuna's."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..adapt.tasks import get as get_task
from ..core import CommonweightError
from ..methods import get
from .cache import Cache
from .job import TUNING_SEED, Job
from .run import execute, opened

SPAN = 8.0  # rates are drawn, by their logarithm, from 1 / SPAN to SPAN times the method's own
RUNGS = 2  # after epochs 1, 2, 4, ... a trial goes on that is in the better half of those that came as far


def tune(job: Job, trials: int, cache: Cache | None = None) -> dict[str, Any]:
    """The learning rate with the best dev score of so many trials; the first of them is the method's own rate.

    Every method gets the same number of trials. Returns {"lr", "trials": [{"lr", "score", "epochs", "state"}, ...]}.
    Trials are cached like runs, those that were stopped too: a tuning that was killed goes on where it was.
    Cost: at most `trials` runs. Raises: CommonweightError without Optuna.
    """
    own = get(job.method).lr
    if trials <= 0:
        return {"lr": own, "trials": []}
    optuna = _optuna()
    metric, more = get_task(job.task).better
    study = optuna.create_study(
        direction="maximize" if more else "minimize",
        sampler=optuna.samplers.TPESampler(seed=TUNING_SEED),
        pruner=optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=RUNGS),
    )
    study.enqueue_trial({"lr": own})

    def objective(trial: Any) -> float:
        one = replace(job, lr=trial.suggest_float("lr", own / SPAN, own * SPAN, log=True), seed=TUNING_SEED, trial=True)
        record = _trial(one, trial, metric, cache, optuna.TrialPruned)
        if record["state"] == "failed":
            raise optuna.TrialPruned
        return record["dev"][metric]

    study.optimize(objective, n_trials=trials)
    done = [t for t in study.trials if t.state.name == "COMPLETE"]
    told = [
        {"lr": t.params["lr"], "score": t.value if t in done else None, "epochs": len(t.intermediate_values),
         "state": "done" if t in done else "stopped"}
        for t in study.trials
    ]  # fmt: skip
    return {"lr": study.best_trial.params["lr"] if done else own, "trials": told}


def _trial(job: Job, trial: Any, metric: str, cache: Cache | None, stopped: type[Exception]) -> dict[str, Any]:
    """A trial's record. One that is in the cache goes through the same decisions as if it were trained now."""
    scores: list[float] = []

    def report(score: float) -> None:
        scores.append(score)
        trial.report(score, len(scores))
        if trial.should_prune():
            raise stopped

    host = opened(job.model, job.task, job.dtype)
    key = job.key(host)
    found = None if cache is None else cache.get(key)
    if found is not None:
        for score in (point[f"dev_{metric}"] for point in found["curve"] if f"dev_{metric}" in point):
            report(score)
        if found["state"] == "stopped":
            raise stopped
        return found
    try:
        return execute(job, cache, lambda dev: report(dev[metric]))
    except stopped:
        if cache is not None:
            curve = [{f"dev_{metric}": s} for s in scores]
            cache.put({"key": key, "job": job.to_json(), "state": "stopped", "curve": curve})
        raise


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as e:
        raise CommonweightError("--trials needs Optuna: pip install 'commonweight[compare]', or --trials 0") from e
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
