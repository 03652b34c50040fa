"""The tuning budget: as many trials for everybody, the bad ones stopped early, none done twice."""

import dataclasses
import sys

import pytest

import commonweight as cw
from commonweight.compare import Cache
from commonweight.compare import run as runs
from commonweight.compare.job import TUNING_SEED
from commonweight.compare.tune import SPAN, tune


@pytest.fixture
def epochs(job):
    return dataclasses.replace(job, recipe={"epochs": 4, "batch_size": 12}, method="mos", options={"rank": 2})


def test_no_trials_is_the_methods_own_rate(epochs):
    assert tune(epochs, 0) == {"lr": 2e-3, "trials": []}


def test_trials(epochs, tmp_path, monkeypatch):
    cache = Cache(tmp_path)
    found = tune(epochs, 5, cache)
    trials = found["trials"]
    assert len(trials) == len(cache) == 5 and trials[0]["lr"] == 2e-3 and trials[0]["state"] == "done"
    assert all(2e-3 / SPAN <= t["lr"] <= 2e-3 * SPAN for t in trials)
    done = [t for t in trials if t["state"] == "done"]
    assert found["lr"] == max(done, key=lambda t: t["score"])["lr"]
    assert any(t["state"] == "stopped" and t["epochs"] < 4 for t in trials), "somebody was worse than the others"
    assert all(t["epochs"] == 4 for t in done)
    monkeypatch.setattr(runs, "adapt", lambda *_, **__: pytest.fail("trained again"))
    assert tune(epochs, 5, cache) == found
    assert tune(epochs, 3, cache)["trials"] == trials[:3]


def test_trials_never_see_the_test_rows_nor_a_reported_seed(epochs, monkeypatch):
    seen = []

    def execute(job, cache=None, watch=None):
        seen.append(job)
        return {"state": "done", "dev": {"accuracy": 0.5}, "curve": []}

    monkeypatch.setattr("commonweight.compare.tune.execute", execute)
    tune(epochs, 3)
    assert [(j.trial, j.seed) for j in seen] == [(True, TUNING_SEED)] * 3 and len({j.lr for j in seen}) == 3


def test_a_rate_at_which_nothing_is_learned_does_not_win(epochs, monkeypatch):
    def execute(job, cache=None, watch=None):
        score = 0.5 if job.lr < 2e-3 else None
        return {"state": "done", "dev": {"accuracy": score}} if score else {"state": "failed"}

    monkeypatch.setattr("commonweight.compare.tune.execute", execute)
    assert tune(epochs, 6)["lr"] < 2e-3
    monkeypatch.setattr("commonweight.compare.tune.execute", lambda *_: {"state": "failed"})
    assert tune(epochs, 2)["lr"] == 2e-3


def test_without_optuna(epochs, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(cw.CommonweightError, match=r"needs Optuna: pip install 'commonweight\[compare\]'"):
        tune(epochs, 1)
