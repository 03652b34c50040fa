"""Recipes: what a file says is what is computed; what it must not say is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import commonweight as cw
from commonweight.merge import folder
from commonweight.merge import plan as plans
from commonweight.merge.recipe import load
from commonweight.merge.recipe.build import build

from .sample import gap, models

SHAPES = {
    "model.embed_tokens.weight": (20, 8),
    **{f"model.layers.{i}.{n}.weight": s for i in range(4) for n, s in (("attn", (8, 8)), ("mlp", (12, 8)))},
    "model.norm.weight": (8,),
}


@pytest.fixture
def four(tmp_path, monkeypatch):
    base, others = models(3, shapes=SHAPES)
    for i, state in enumerate([base, *others]):
        (tmp_path / f"m{i}").mkdir()
        save_file(state, tmp_path / f"m{i}" / "model.safetensors")
        (tmp_path / f"m{i}" / "config.json").write_text(json.dumps({"num_hidden_layers": 4, "vocab_size": 20}))
    monkeypatch.chdir(tmp_path)
    return base, others


def made(text: str, out: str = "out"):
    Path("recipe.yaml").write_text(text)
    done = folder.write(build(load("recipe.yaml")), out)
    return load_file(done.folder / "model.safetensors")


def test_weights_options_and_paths(four):
    base, others = four
    found = made("""
method: ties
base: m0
models:
  - m1
  - {model: m2, weight: 0.7, density: 0.3}
  - {model: ./m3, weight: 0.4}
options: {density: 0.5, scale: 0.9, compat: mergekit}
""")
    wanted = cw.merge.ties(others, base, weights=[1, 0.7, 0.4], density=[0.5, 0.3, 0.5], scale=0.9, compat="mergekit")
    assert gap(found, wanted) == 0


def test_rules_select_by_pattern_expression_and_layer(four):
    base, others = four
    found = made("""
method: linear
models: [m1, m2]
weights: [0.25, 0.75]
rules:
  - {tensors: "*.mlp.*", weights: [1, 0]}
  - {tensors: ["/layers.[23].attn/"], method: slerp, options: {t: 0.3}}
  - {layers: 0-0, take: m2}
  - {tensors: "*.norm.*", drop: true}
""")
    a, b = others[:2]
    assert "model.norm.weight" not in found and len(found) == len(base) - 1
    assert gap({"x": found["model.layers.1.mlp.weight"]}, {"x": a["model.layers.1.mlp.weight"]}) < 1e-6
    assert torch.equal(found["model.layers.0.mlp.weight"], b["model.layers.0.mlp.weight"])
    name = "model.layers.3.attn.weight"
    assert gap({"x": found[name]}, {"x": cw.merge.slerp([{name: a[name]}, {name: b[name]}], t=0.3)[name]}) < 1e-6
    name = "model.layers.1.attn.weight"
    assert gap({"x": found[name]}, {"x": 0.25 * a[name] + 0.75 * b[name]}) < 1e-6


def test_gradients_go_with_depth(four):
    base, others = four
    found = made("""
method: task_arithmetic
base: m0
models:
  - {model: m1, weight: {gradient: [0, 0.5, 1]}}
  - {model: m2, weight: 2}
options: {scale: {gradient: [1, 2]}}
""")
    for i, (w, scale) in enumerate(zip((0, 1 / 3, 2 / 3, 1), (1, 4 / 3, 5 / 3, 2))):
        name = f"model.layers.{i}.attn.weight"
        a, b = (others[k][name] - base[name] for k in range(2))
        assert gap({"x": found[name]}, {"x": base[name] + scale * (w * a + 2 * b)}) < 2e-6
    name = "model.norm.weight"
    assert gap({"x": found[name]}, {"x": base[name] + 2 * (others[1][name] - base[name])}) < 2e-6


def test_slices_stack_blocks(four):
    _, others = four
    found = made("""
method: passthrough
slices:
  - models: [{model: m1, layers: 0-2}]
  - models: [{model: m2, layers: 1-3}]
""")
    a, b = others[:2]
    for i, (state, j) in enumerate([(a, 0), (a, 1), (a, 2), (b, 1), (b, 2), (b, 3)]):
        assert torch.equal(found[f"model.layers.{i}.mlp.weight"], state[f"model.layers.{j}.mlp.weight"])
    assert torch.equal(found["model.embed_tokens.weight"], a["model.embed_tokens.weight"])
    assert torch.equal(found["model.norm.weight"], b["model.norm.weight"]) and len(found) == 14
    assert json.loads(Path("out/config.json").read_text())["num_hidden_layers"] == 6


MERGEKIT = """
merge_method: ties
base_model: m0
models:
  - model: m0
  - model: m1
    parameters:
      weight: [0.2, 0.8]
      density:
        - {filter: mlp, value: [0.3, 0.9]}
        - value: 0.5
  - model: m2
    parameters: {weight: 0.5}
parameters: {density: 0.7, normalize: true, int8_mask: true, lambda: 0.9}
dtype: float32
"""


def test_a_mergekit_recipe(four):
    base, others = four
    found = made(MERGEKIT)
    for name in base:
        block = int(name.split(".")[2]) if "layers" in name else 0
        t = block / 3
        density = 0.3 + 0.6 * t if "mlp" in name else 0.5
        one = [{name: s[name]} for s in others[:2]]
        wanted = cw.merge.ties(
            one, {name: base[name]}, weights=[0.2 + 0.6 * t, 0.5], density=[density, 0.7], scale=0.9, compat="mergekit"
        )
        assert gap({name: found[name]}, wanted) < 1e-6
    notices = build(load("recipe.yaml")).notices
    assert any("int8_mask is not used" in n for n in notices) and any("float32" in n for n in notices)


def test_mergekit_slerp_starts_at_the_base(four):
    base, others = four
    found = made("""
merge_method: slerp
base_model: m0
slices:
  - sources:
      - {model: m0, layer_range: [0, 4]}
      - {model: m1, layer_range: [0, 4]}
parameters:
  t: [{filter: attn, value: [0, 1]}, {value: 0.5}]
dtype: bfloat16
""")
    name = "model.layers.3.attn.weight"
    assert torch.equal(found[name], others[0][name].bfloat16())
    name = "model.layers.1.mlp.weight"
    wanted = cw.merge.slerp([{name: base[name]}, {name: others[0][name]}], t=0.5)
    assert torch.equal(found[name], wanted[name].bfloat16())


OWN = "method: ties\nbase: m0\nmodels: [m1, m2]\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("method: tie\nmodels: [m1]", "unknown merge method 'tie'; did you mean 'ties'"),
        ("models: [m1]", "method is missing"),
        ("- a", "wanted keys and values"),
        ("method: [", "line 1: no YAML"),
        (OWN + "modls: [m3]", "unknown key in recipe 'modls'; did you mean 'models'"),
        (OWN + "options: {densty: 1}", "unknown option in options 'densty'; did you mean 'density'"),
        (OWN + "options: {density: 3}", "ties: density is 3; it must be <= 1"),
        (OWN + "options: {density: {gradient: []}}", "gradient is .*; wanted a list of values"),
        (OWN + "options: {density: {gradint: [1]}}", "did you mean 'gradient'"),
        (OWN + "weights: [1]", "weights: 1 for 2 models"),
        (OWN + "dtype: float64", "unknown dtype 'float64'"),
        (OWN + "rules: [{method: linear}]", r"rules\[0\]: say which tensors"),
        (OWN + "rules: [{tensors: '/(/', drop: true}]", "no regular expression"),
        (OWN + "rules: [{layers: 3-1, drop: true}]", "wanted ranges like"),
        (OWN + "rules: [{tensors: '*', drop: true}]", "no tensor is left"),
        (OWN + "rules: [{tensors: '*', take: m9}]", "m9: no such file or folder"),
        ("method: ties\nmodels: [m1, m2]", "ties: base is missing"),
        ("method: linear\nbase: m0\nmodels: [m1]", "linear takes no base"),
        ("method: linear\nmodels: [{modle: m1}]", "did you mean 'model'"),
        ("method: linear\nmodels: [m1]\nslices: []", "either models or slices"),
        ("method: passthrough\nslices: [{models: [{model: m1, layers: 2-7}]}]", "m1 has 4 layers; 8 are asked for"),
        ("method: linear\nslices: [{models: [{model: m1, layers: 0-1}, {model: m2, layers: 0}]}]", "different numbers"),
        ("method: linear\nmodels: [m1, m2]\nweights: [1, -1]", "sum to zero"),
        ("merge_method: tiess\nmodels: [{model: m1}]", "unknown merge_method 'tiess'; did you mean 'ties'"),
        ("merge_method: linear\nmodules: {}\n", "modules: this is not read"),
        ("merge_method: linear\nmodels: [{model: m1, parameters: {wieght: 1}}]", "did you mean 'weight'"),
        ("merge_method: linear\nmodels: [{model: m1}, {model: m2, parameters: {weight: 1}}]", "of m1 is missing"),
        ("merge_method: slerp\nslices: [{sources: [{model: m1, layer_range: [0]}]}]", "layer_range is"),
        ("merge_method: ties\nbase_model: m0\nmodels: [{model: m1}]\nparameters: {rescale: true}", "is not rescaled"),
    ],
)  # fmt: skip
def test_bad_recipes(text, message, four):
    Path("bad.yaml").write_text(text)
    with pytest.raises(cw.CommonweightError, match=message):
        build(load("bad.yaml"))


def test_a_recipe_that_is_not_there():
    with pytest.raises(cw.CommonweightError, match="no such recipe"):
        load("nowhere.yaml")


def test_models_that_do_not_fit(four):
    state = load_file("m2/model.safetensors")
    wrong = {**state, "model.norm.weight": torch.ones(9)}
    save_file(wrong, "m2/model.safetensors")
    with pytest.raises(
        cw.CommonweightError, match=r"model.norm.weight: model \(m2\) has shape \(9,\), base \(m0\) has"
    ):
        build(load({"method": "ties", "base": "m0", "models": ["m1", "m2"]}))
    del wrong["model.norm.weight"]
    save_file(wrong, "m2/model.safetensors")
    with pytest.raises(cw.CommonweightError, match=r"model.norm.weight: model \(m2\) has no such tensor"):
        build(load({"method": "ties", "base": "m0", "models": ["m1", "m2"]}))
    rules = [{"tensors": "*norm*", "take": "m1"}]
    assert build(load({"method": "ties", "base": "m0", "models": ["m1", "m2"], "rules": rules})).tasks


def test_the_plan_says_bytes_and_memory_and_reads_nothing(four):
    built = build(load({"method": "ties", "base": "m0", "models": ["m1", "m2"]}))
    p = plans.plan(built, 2)
    size = sum(4 * torch.Size(s).numel() for s in SHAPES.values())
    assert p.reads == {n: (len(SHAPES), size) for n in ("m0", "m1", "m2")} and p.largest is None
    assert p.memory < 256_000_000 and p.steps[0].survey == "model" and p.steps[0].numel == size // 4
    words = plans.text(p)
    assert "looks at the whole model first" in words and "whatever the model's size" in words
    done = folder.write(built, "out")
    assert p.writes == {"model.safetensors": pytest.approx(done.nbytes, abs=500)}
    whole = plans.plan(build(load({"method": "tsv_m", "base": "m0", "models": ["m1"]})), 2)
    assert whole.largest == "model.embed_tokens.weight" and "for the whole of" in plans.text(whole)
