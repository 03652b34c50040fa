"""Of several files of weights in a folder those are read that transformers loads."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

import commonweight as cw
from commonweight.merge.recipe import load
from commonweight.merge.recipe.build import build
from commonweight.merge.sources.weights import weights_of


@pytest.fixture
def write(tmp_path):
    def one(name, **tensors):
        save_file({k: torch.full((2,), float(v)) for k, v in tensors.items()}, tmp_path / name)

    return one


def index(folder, **homes):
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": homes}))


def names(folder):
    return [f.name for f in weights_of(folder, "model").files]


def test_one_file_before_an_index_and_an_index_before_all(write, tmp_path):
    write("model-00001-of-00001.safetensors", a=1)
    write("consolidated.safetensors", b=1)
    assert names(tmp_path) == ["model-00001-of-00001.safetensors"]
    index(tmp_path, a="model-00001-of-00001.safetensors")
    write("other.safetensors", a=2)
    assert names(tmp_path) == ["model-00001-of-00001.safetensors"]
    write("model.safetensors", a=3)
    assert names(tmp_path) == ["model.safetensors"]
    built = build(load({"method": "linear", "models": [str(tmp_path)]}))
    assert built.tasks[0].reads[0].source.read("a")[0] == 3
    told = next(n for n in built.notices if "is not read" in n)
    assert "consolidated.safetensors" in told and "model.safetensors.index.json" in told
    index(tmp_path, a="gone.safetensors")  # stale, and not read
    assert names(tmp_path) == ["model.safetensors"]


def test_where_transformers_would_find_none(write, tmp_path):
    write("consolidated.safetensors", a=1)
    assert names(tmp_path) == ["consolidated.safetensors"], "nothing else is there"
    write("adapter_model.safetensors", b=1)
    write("x.safetensors", a=2)
    write("y.safetensors", c=2)
    assert names(tmp_path) == ["x.safetensors", "y.safetensors"]


def test_weights_that_the_config_names(write, tmp_path):
    write("model.safetensors", a=1)
    write("mine.safetensors", a=2)
    (tmp_path / "config.json").write_text('{"transformers_weights": "mine.safetensors"}')
    assert names(tmp_path) == ["mine.safetensors"]
    (tmp_path / "config.json").write_text('{"transformers_weights": "../mine.safetensors"}')
    with pytest.raises(
        cw.CommonweightError, match=r"names its weights '\.\./mine.safetensors', which is not a file of this folder"
    ):
        names(tmp_path)
