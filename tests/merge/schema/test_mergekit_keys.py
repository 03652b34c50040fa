"""Keys of mergekit's recipes that it reads, or reads past."""

from __future__ import annotations

import pytest

import commonweight as cw
from commonweight.merge.recipe import load


def two(**more):
    models = [{"model": m, "parameters": {"weight": 1}} for m in "ab"]
    return {"merge_method": "linear", "models": models, **more}


def test_a_dtype_of_torch_by_its_whole_name():
    assert load(two(dtype="torch.bfloat16")).dtype == "bfloat16"
    assert load(two(dtype="float32", out_dtype="torch.float16")).dtype == "float16"
    assert load({"method": "linear", "models": ["a", "b"], "dtype": "torch.float32"}).dtype == "float32"
    with pytest.raises(cw.CommonweightError, match=r"dtype 'torch.bfloat'; did you mean 'bfloat16'"):
        load(two(dtype="torch.bfloat"))


@pytest.mark.parametrize("more", [{"random_seed": 0}, {"parameters": {"embed_slerp": True}}, {"name": "x"}])
def test_keys_that_change_nothing_are_named(more):
    key = next(iter(more.get("parameters", more)))
    assert any(f"{key} is not used" in n for n in load(two(**more)).notices)


def test_models_that_are_written_out():
    def first(model):
        recipe = two()
        recipe["models"][0]["model"] = model
        return load(recipe).slices[0].inputs[0].model

    assert first({"model": {"path": "a"}}) == first({"path": "a"}) == first({"model": "a"}) == "a"
    assert first({"model": {"path": "u/a", "revision": "v1"}, "lora": {"path": "l"}}) == "u/a@v1+l"
    assert load(two(base_model={"model": {"path": "a"}})).base == "a"
    for wrong, message in (
        ({"lora": "a"}, "model is missing"),
        ({"revision": "a"}, "key in"),
        ({"path": 3}, "wanted a"),
    ):
        with pytest.raises(cw.CommonweightError, match=message):
            first(wrong)
    with pytest.raises(cw.CommonweightError, match="override_architecture: this is not read"):
        first({"model": "a", "override_architecture": "B"})


def test_padding_has_a_bound():
    ours = {"method": "linear", "models": ["a"], "tokenizer": {"multiple": 10**9}}
    for recipe in (two(tokenizer={"pad_to_multiple_of": 10**9}), ours):
        with pytest.raises(cw.CommonweightError, match="wanted at most 65,536"):
            load(recipe)
