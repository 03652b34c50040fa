"""Whole recipes searched: what is found is merged, and a search that was stopped goes on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import commonweight as cw
from commonweight.merge.learning import search, tuning
from commonweight.merge.learning.tuning import filled, tune_recipe
from commonweight.workers import workers

SPACE = {"weights.1": (0.0, 1.0)}
RECIPE = {"method": "linear", "models": ["a", "b"], "weights": [1.0, 0.1], "options": {"normalize": False}}


@pytest.fixture
def two(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for i, name in enumerate("ab"):
        Path(name).mkdir()
        save_file({"w": torch.randn(4, 4, generator=torch.Generator().manual_seed(i))}, f"{name}/model.safetensors")


def near(folder: Path) -> float:
    """The best: the first model, and 0.7 of the second."""
    a, b, w = (load_file(f / "model.safetensors")["w"] for f in (Path("a"), Path("b"), Path(folder)))
    return -(w - a - 0.7 * b).square().mean().item()


def test_weights_are_found_and_merged(two):
    space = {"weights.1": (0.0, 1.0)}
    done = tune_recipe(RECIPE, space, near, "out", budget=25)
    assert abs(done.recipe["weights"][1] - 0.7) < 0.05 and near(Path("out")) == pytest.approx(done.found.score)
    assert sorted(p.name for p in Path().iterdir()) == ["a", "b", "out"]


SEEN = []


def seen(folder: Path) -> float:
    SEEN.append(folder)
    if len(SEEN) == 9:
        raise KeyboardInterrupt
    return near(folder)


def test_a_search_that_was_stopped_goes_on_and_its_log_goes(two):
    SEEN.clear()
    with pytest.raises(KeyboardInterrupt):
        tune_recipe(RECIPE, SPACE, seen, "out", budget=12)
    assert Path(".out.search.json").exists()
    found = tune_recipe(RECIPE, SPACE, seen, "out", budget=12).found
    assert len(SEEN) == 9 + 12 - 8 and found == tune_recipe(RECIPE, SPACE, near, "out2", budget=12, log="mine").found
    assert sorted(p.name for p in Path().iterdir()) == ["a", "b", "mine", "out", "out2"]
    SEEN.clear()
    with pytest.raises(cw.CommonweightError, match="mine: the log of another search: evaluation differ"):
        tune_recipe(RECIPE, SPACE, seen, "out3", budget=15, log="mine")
    longer = tune_recipe(RECIPE, SPACE, near, "out3", budget=15, log="mine").found
    assert longer.history[:12] == found.history and not SEEN


def test_a_log_in_a_model_s_folder_is_no_part_of_the_model(two):
    SEEN.clear()
    with pytest.raises(KeyboardInterrupt):
        tune_recipe(RECIPE, SPACE, stops, "a/out", budget=4, about=None)
    assert Path("a/.out.search.json").exists()
    assert len(tune_recipe(RECIPE, SPACE, stops, "a/out", budget=4).found.history) == 4 and len(SEEN) == 5


@pytest.mark.parametrize(
    ("space", "how", "message"),
    [
        ({"weights.1": ()}, {}, r"weights.1: the space has \(\); wanted \(low, high\)"),
        ({"method": []}, {"engine": "optuna"}, r"method: the space has \(\); wanted"),
        ({}, {}, "nothing to search"),
        (SPACE, {"engine": "optun"}, "unknown search engine 'optun'"),
        (SPACE, {"budget": 0}, "budget is 0"),
    ],
)
def test_spaces_that_cannot_be(space, how, message, two):
    with pytest.raises(cw.CommonweightError, match=message):
        tune_recipe(RECIPE, space, near, "out", **how)


def _b():
    save_file({"w": torch.ones(4, 4)}, "b/model.safetensors")
    return {}


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (_b, "content of b"),
        (lambda: {"recipe": {**RECIPE, "weights": [0.9, 0.1]}}, "recipe"),
        (lambda: {"recipe": {**RECIPE, "models": ["a", "c"]}}, "recipe, content of c, content of b"),
        (lambda: {"about": {"rows": "2"}}, "rows"),
        (lambda: {"evaluate": lambda folder: 1.0}, "evaluation"),
    ],
)
def test_a_log_of_other_models_rows_or_recipes_is_refused(change, what, two):
    """It has scores of something else: taking them would report a best that nobody measured."""
    Path("c").mkdir()
    save_file({"w": torch.zeros(4, 4)}, "c/model.safetensors")
    SEEN.clear()
    call = {"recipe": RECIPE, "space": SPACE, "evaluate": near, "about": {"rows": "1"}}
    with pytest.raises(KeyboardInterrupt):
        tune_recipe(**{**call, "evaluate": stops}, out="out", budget=3)
    told = json.loads(Path(".out.search.json").read_text())
    Path(".out.search.json").write_text(json.dumps({**told, "evaluation": tuning._name(near)}))
    more = change()
    with pytest.raises(cw.CommonweightError, match=f"search.json: the log of another search: {what} differ; give it"):
        tune_recipe(**{**call, **more}, out="out", budget=3)
    assert not Path("out").exists()


def stops(folder: Path) -> float:
    SEEN.append(folder)
    if len(SEEN) == 2:
        raise KeyboardInterrupt
    return near(folder)


def test_files_and_tenants_are_known_by_their_content(two):
    body = {"method": "fisher", "models": ["a", "b"], "options": {"statistics": ["s1", "s2"]}}
    for name in ("s1", "s2", "s3", "fisher"):
        Path(name).write_text("1")
    space = {"options.statistics.1": ("s2", "s3"), "method": ("fisher", "regmean")}
    before = tuning.depends(body, ".", space)
    for name in ("s1", "s3", "fisher"):
        Path(name).write_text("2")
    after = tuning.depends(body, ".", space)
    assert {k for k in before if before[k] != after[k]} == {"content of s1", "content of s3"}
    host = cw.Host(torch.nn.Sequential(torch.nn.Linear(8, 8)))
    commons = cw.Commons("store")
    commons.publish(host, host.add("t", "lora", rank=2).name)
    body = {"method": "linear", "models": ["a+store:t"]}
    before = tuning.depends(body, ".", {})
    with torch.no_grad():
        next(host["t"].parameters()).add_(1)
    commons.publish(host, "t")
    after = tuning.depends(body, ".", {})
    assert {k for k in before if before[k] != after[k]} == {"content of store:t"}


def test_a_recipe_s_file_and_words(two):
    Path("r.yaml").write_text("method: linear\nmodels: [a, b]\n")
    space = {"models.0.weight": (0.5, 1.5), "method": ("linear", "karcher")}
    done = tune_recipe("r.yaml", space, near, "out", budget=6, engine="optuna")
    assert {p["method"] for p, _ in done.found.history} == {"linear", "karcher"}
    assert done.recipe["models"][0] == {"model": "a", "weight": done.found.best["models.0.weight"]}


def test_over_processes(two):
    space = {"weights.1": (0.0, 1.0)}
    with workers(2, preload="commonweight.merge") as run:
        found = tune_recipe(RECIPE, space, near, "out", budget=7, run=search.side_by_side(run)).found
    assert found == tune_recipe(RECIPE, space, near, "out2", budget=7).found


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("weights.2", "weights.2: the recipe has no 2 there; it has 0 to 1"),
        ("models.x.weight", "models.x.weight: the recipe has no x there"),
        ("options.normalize.x", "options.normalize.x: normalize is False in the recipe; nothing can be set in it"),
    ],
)
def test_places_that_cannot_be(place, message, two):
    with pytest.raises(cw.CommonweightError, match=message):
        tune_recipe(RECIPE, {place: (0.0, 1.0)}, near, "out")
    assert filled(RECIPE, {"options.t": 0.5})["options"] == {"normalize": False, "t": 0.5}
    with pytest.raises(cw.CommonweightError, match="a already exists"):
        tune_recipe(RECIPE, SPACE, near, "a")
    with pytest.raises(cw.CommonweightError, match="a: holds a, which is read for the merge"):
        tune_recipe(RECIPE, SPACE, near, "a", overwrite=True)
