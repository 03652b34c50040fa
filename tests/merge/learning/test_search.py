"""The search: finds what is there to find, within its budget, and goes on as if it had never stopped."""

from __future__ import annotations

import json
import math
import signal
from pathlib import Path

import pytest
import torch
from torch import nn

import commonweight as cw
from commonweight.merge.learning import ablation, dataflow, search
from commonweight.workers import workers
from tests import apart

from ..sample import gap, models

SPACE = {"x": (-1.0, 3.0), "y": (0.0, 2.0)}


def bowl(point):
    return -((point["x"] - 1.5) ** 2) - 3 * (point["y"] - 0.5) ** 2


def test_it_finds_the_top_within_the_budget():
    asked = []

    def count(point):
        asked.append(point)
        return bowl(point)

    found = search.tune(count, SPACE, budget=120, seed=1)
    assert len(asked) == 120 == len(found.history) and found.score > -1e-2 and found.score == bowl(found.best)
    assert asked[0] == {"x": 1.0, "y": 1.0} and all(-1 <= p["x"] <= 3 and 0 <= p["y"] <= 2 for p in asked)
    one = search.tune(lambda p: -abs(p["x"] - 2), {"x": (0.0, 4.0)}, budget=40)
    assert one.score > -0.05
    first = search.tune(bowl, SPACE, budget=1, start={"x": 1.5, "y": 0.5})
    assert first.score == pytest.approx(0) and first.best == pytest.approx({"x": 1.5, "y": 0.5})


@pytest.mark.parametrize("stop", [1, 5, 13, 29])
def test_a_search_that_was_stopped_ends_as_one_that_was_not(tmp_path, stop):
    whole = search.tune(bowl, SPACE, budget=30, seed=3)
    log, asked = tmp_path / "log.json", []

    def dies(point):
        asked.append(point)
        if len(asked) > stop:
            raise KeyboardInterrupt
        return bowl(point)

    with pytest.raises(KeyboardInterrupt):
        search.tune(dies, SPACE, budget=30, seed=3, log=log)
    known = len(json.loads(log.read_text())["scores"]) if log.exists() else 0
    again = []
    found = search.tune(lambda p: again.append(p) or bowl(p), SPACE, budget=30, seed=3, log=log)
    assert found == whole and len(again) == 30 - known
    longer = search.tune(bowl, SPACE, budget=40, seed=3, log=log)
    assert longer.history[:30] == whole.history and longer == search.tune(bowl, SPACE, budget=40, seed=3)


MIXED = {"x": (-1.0, 3.0), "how": ("cup", "bowl")}


def mixed(point):
    return (0.0 if point["how"] == "bowl" else -2.0) - (point["x"] - 1.5) ** 2


def test_optuna_takes_words_beside_numbers():
    found = search.tune(mixed, MIXED, budget=60, seed=1, engine="optuna")
    assert found.best["how"] == "bowl" and found.score > -0.05 and len(found.history) == 60
    assert found.history[0][0] == {"x": 1.0, "how": "cup"} and {p["how"] for p, _ in found.history} == {"cup", "bowl"}
    start = {"x": 1.5, "how": "bowl"}
    assert search.tune(mixed, MIXED, budget=1, start=start, engine="optuna").best == start


DIES = """
import os, signal, sys
sys.path.insert(0, {root!r})
from commonweight.merge import search
from tests.merge.learning.test_search import MIXED, SPACE, bowl, mixed

left = {stop}

def dies(point):
    global left
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
    left -= 1
    return (mixed if {engine!r} == "optuna" else bowl)(point)

space = MIXED if {engine!r} == "optuna" else SPACE
search.tune(dies, space, budget=12, seed=3, population=4, engine={engine!r}, log={log!r})
"""


@pytest.mark.parametrize(("engine", "stop"), [("optuna", 3), ("optuna", 9), ("cmaes", 6)])
def test_killed_and_continued_gives_the_same_trials(engine, stop, tmp_path):
    root, log = str(Path(__file__).parents[3]), tmp_path / "log.json"
    told = DIES.format(root=root, stop=stop, engine=engine, log=str(log))
    assert apart.run("-c", told).returncode == -signal.SIGKILL
    assert len(json.loads(log.read_text())["scores"]) == stop
    score, space = (mixed, MIXED) if engine == "optuna" else (bowl, SPACE)
    how = {"budget": 12, "seed": 3, "population": 4, "engine": engine}
    again = []
    found = search.tune(lambda p: again.append(p) or score(p), space, log=log, **how)
    assert found == search.tune(score, space, **how) and len(again) == 12 - stop


def test_over_processes():
    with workers(2, preload="commonweight.merge") as run:
        found = search.tune(bowl, SPACE, budget=13, run=search.side_by_side(run))
    assert found == search.tune(bowl, SPACE, budget=13)


def test_scores_that_are_no_number_are_the_worst():
    found = search.tune(lambda p: math.nan if p["x"] > 1 else bowl(p), SPACE, budget=60, start={"x": 0.0, "y": 1.0})
    assert found.best["x"] <= 1 and math.isfinite(found.score) and found.score > -1


def test_side_by_side():
    sizes = []

    def run(f, points):
        points = list(points)
        sizes.append(len(points))
        return [f(p) for p in points]

    assert search.tune(bowl, SPACE, budget=13, run=run) == search.tune(bowl, SPACE, budget=13)
    assert sizes[:2] == [1, 6] and sum(sizes) == 13


BASE, SOURCES = models(2, seed=3)


def test_a_merge_is_tuned_by_groups_of_blocks():
    """The best weights are known: the target is a merge with other weights in the first and the last blocks."""
    goal = {k: BASE[k] + (1.0 if "layers.0" in k else 0.2) * (SOURCES[0][k] - BASE[k]) for k in BASE}

    def near(state):
        return -sum((state[k] - goal[k]).square().sum().item() for k in goal)

    merged, found = search.tune_merge(
        near, "task_arithmetic", SOURCES, BASE, space={"weights": (0.0, 1.2)}, groups=3, budget=150, seed=2
    )
    assert set(found.best) == {f"{g}.weights.{i}" for g in range(4) for i in range(2)}
    assert near(merged) == found.score > 0.2 * found.history[0][1]
    same = search.merge_with("task_arithmetic", SOURCES, BASE, dict.fromkeys(found.best, 0.5), groups=3)
    assert gap(same, cw.merge.task_arithmetic(SOURCES, BASE, weights=0.5)) < 1e-6


ONE = {"layers.0.w": torch.ones(2, 2)}
TWO = {**ONE, "layers.1.w": torch.ones(2, 2)}


@pytest.mark.parametrize(
    ("given", "base"),
    [([TWO, ONE], None), ([ONE, TWO], None), ([TWO, TWO], ONE), ([ONE, ONE], TWO), ([], None)],
)
def test_groups_refuse_what_a_plain_merge_refuses(given, base):
    method, point = "task_arithmetic" if base else "linear", {"0.weights": 1.0, "1.weights": 1.0}
    with pytest.raises(cw.CommonweightError) as plain:
        cw.merge.merge(method, given, base)
    with pytest.raises(cw.CommonweightError) as grouped:
        search.merge_with(method, given, base, point, groups=1)
    assert str(grouped.value) == str(plain.value)


def test_options_of_a_merge_are_tuned_too():
    box = search.merge_space(2, {"weights": (0.0, 1.0), "density": (0.1, 0.9), "scale": (0.5, 1.0)})
    assert list(box) == ["weights.0", "weights.1", "density", "scale"]
    point = {"weights.0": 0.25, "weights.1": 0.5, "density": 0.4, "scale": 0.7}
    mine = search.merge_with("ties", SOURCES, BASE, point, compat="mergekit")
    wanted = cw.merge.ties(SOURCES, BASE, weights=[0.25, 0.5], density=0.4, scale=0.7, compat="mergekit")
    assert gap(mine, wanted) == 0
    assert search.blocks(["layers.0.a", "layers.1.a", "layers.2.a", "layers.3.a", "norm"], 2) == {
        "layers.0.a": 0, "layers.1.a": 0, "layers.2.a": 1, "layers.3.a": 1, "norm": 2,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda log: search.tune(bowl, {}), "nothing to search"),
        (lambda log: search.tune(bowl, SPACE, engine="optun"), "unknown search engine 'optun'; did you mean 'optuna'"),
        (lambda log: search.tune(mixed, MIXED), "how: cmaes searches numbers, not cup, bowl; take engine optuna"),
        (lambda log: search.tune(bowl, {"x": (1.0, "b")}, engine="optuna"), "x: the space has .* wanted .low, high"),
        (lambda log: search.tune(bowl, SPACE, seed=3, engine="optuna", log=log), "another search: seed, engine differ"),
        (lambda log: search.tune(bowl, {"x": (1.0, 0.0)}), r"x: the space has \(1.0, 0.0\); wanted \(low, high\)"),
        (lambda log: search.tune(bowl, SPACE, budget=0), "budget is 0"),
        (lambda log: search.tune(bowl, SPACE, seed=4, log=log), "the log of another search: seed differ"),
        (lambda log: search.tune(bowl, SPACE, log=log.with_name("bad")), "not the log of a search"),
        (lambda log: search.tune(bowl, SPACE, run=lambda f, points: []), "0 scores came back for 1 points"),
    ],
)
def test_bad_input(tmp_path, call, message):
    (tmp_path / "bad").write_text("[]")
    search.tune(bowl, SPACE, budget=1, log=tmp_path / "log")
    with pytest.raises(cw.CommonweightError, match=message):
        call(tmp_path / "log")


def test_mixtures_are_told_by_averages_of_their_parts():
    parts = {"law": SOURCES[0], "news": SOURCES[1], "code": BASE}
    told = ablation.proxies(parts, [["law"], ["law", "news"]], lambda s: s["conv"].sum().item())
    mean = (SOURCES[0]["conv"] + SOURCES[1]["conv"]) / 2
    assert told[0].score == pytest.approx(SOURCES[0]["conv"].sum().item(), abs=1e-4)
    assert told[1] == (("law", "news"), pytest.approx(mean.sum().item(), abs=1e-4))
    sized = ablation.average(parts, ["law", "code"], sizes={"law": 3, "code": 1})
    assert (sized["conv"] - 0.75 * SOURCES[0]["conv"] - 0.25 * BASE["conv"]).abs().max() < 1e-6
    with pytest.raises(cw.CommonweightError, match="unknown part of the data 'laws'; did you mean 'law'"):
        ablation.average(parts, ["laws"])
    with pytest.raises(cw.CommonweightError, match="a mixture has no parts"):
        ablation.average(parts, [])
    with pytest.raises(cw.CommonweightError, match="code: its size is None"):
        ablation.average(parts, ["code"], sizes={"law": 3})


class Stack(nn.Module):
    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.layers = nn.ModuleList([nn.Linear(3, 3) for _ in range(2)])

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


def test_a_path_through_two_models_layers():
    a, b, x = Stack(0), Stack(1), torch.ones(1, 3)
    start = dataflow.start_of([2, 2], repeats=2)
    assert dataflow.path_of(start, [2, 2]) == [(0, 0, 1.0), (0, 1, 1.0)]
    point = {**start, "run.3": 0.9, "scale.3": 0.5, "run.4": 0.8, "run.0": 0.1}
    path = dataflow.path_of(point, [2, 2])
    assert path == [(0, 1, 1.0), (1, 1, 0.5), (0, 0, 1.0)]
    made = Stack(2)
    made.layers = dataflow.assemble([a.layers, b.layers], path)
    assert torch.allclose(made(x), a.layers[0](b.layers[1](0.5 * a.layers[1](x))))
    assert set(dataflow.path_space([2, 2], 2)) == set(start)
    found = search.tune(
        lambda p: -(made_of(p, a, b)(x) - made(x)).norm().item() if dataflow.path_of(p, [2, 2]) else math.nan,
        dataflow.path_space([2, 2], 2), start=start, budget=60, seed=1,
    )  # fmt: skip
    assert found.score > found.history[0][1]
    with pytest.raises(cw.CommonweightError, match="the path is empty"):
        dataflow.assemble([a.layers], [])
    with pytest.raises(cw.CommonweightError, match=r"layer 2 of model 0; the models have \[2\] layers"):
        dataflow.assemble([a.layers], [dataflow.Step(0, 2)])


def made_of(point, a, b):
    made = Stack(2)
    made.layers = dataflow.assemble([a.layers, b.layers], dataflow.path_of(point, [2, 2]))
    return made
