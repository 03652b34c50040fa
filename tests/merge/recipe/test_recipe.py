"""Recipes: what a file says is what is computed; what it must not say is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import commonweight as cw
from commonweight.merge.output import folder
from commonweight.merge.plan import figures as plans
from commonweight.merge.recipe import load
from commonweight.merge.recipe.build import build
from commonweight.merge.statistics import Statistics

from ..sample import gap, models
from ..vocabulary.test_vocabulary import EMBED, HEAD, WORDS
from ..vocabulary.test_vocabulary import states as states

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


def refused(text: str, message: str):
    Path("bad.yaml").write_text(text)
    with pytest.raises(cw.CommonweightError, match=message):
        build(load("bad.yaml"))


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
        ("method: [", "line 1: not valid YAML"),
        (OWN + "modls: [m3]", "unknown key in recipe 'modls'; did you mean 'models'"),
        (OWN + "options: {densty: 1}", "unknown option in options 'densty'; did you mean 'density'"),
        (OWN + "options: {density: 3}", "ties: density is 3; it must be <= 1"),
        (OWN + "options: {density: {gradient: []}}", "gradient is .*; wanted a list of values"),
        (OWN + "options: {density: {gradint: [1]}}", "did you mean 'gradient'"),
        (OWN + "weights: [1]", "weights: 1 for 2 models"),
        (OWN + "dtype: float64", "unknown dtype 'float64'"),
        (OWN + "rules: [{method: linear}]", r"rules\[0\]: say which tensors"),
        (OWN + "rules: [{tensors: '/(/', drop: true}]", "not a regular expression"),
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
        ("merge_method: linear\nmodules: {}\n", "modules: this is not read.* for each module a rule over its tensors"),
        ("merge_method: linear\nmodels: [{model: m1, parameters: {wieght: 1}}]", "did you mean 'weight'"),
        ("merge_method: linear\nmodels: [{model: m1}, {model: m2, parameters: {weight: 1}}]", "of m1 is missing"),
        ("merge_method: slerp\nslices: [{sources: [{model: m1, layer_range: [0]}]}]", "layer_range is"),
        ("merge_method: ties\nbase_model: m0\nmodels: [{model: m1}]\nparameters: {rescale: true}", "is not rescaled"),
    ],
)  # fmt: skip
def test_bad_recipes(text, message, four):
    refused(text, message)


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


MLP, NORM = "model.layers.{}.mlp.weight", "model.norm.weight"
ACTS = {"take": {"take": "m2"}, "drop": {"drop": True}, "method": {"method": "karcher"}}


@pytest.mark.parametrize("last", ACTS)
@pytest.mark.parametrize("first", ACTS)
def test_the_later_of_two_rules_wins(first, last, four):
    _, others = four
    rules = [{"tensors": "*", **ACTS[first]}, {"tensors": "*norm*", **ACTS[last]}]
    found = folder.make({"method": "linear", "models": ["m1", "m2"], "rules": [*rules, KEPT]}, "out").folder
    found = load_file(found / "model.safetensors")
    karcher = cw.merge.karcher(others[:2])[NORM]
    wanted = {"take": others[1][NORM], "drop": None, "method": karcher}[last]
    assert (wanted is None and NORM not in found) or torch.equal(found[NORM], wanted)
    assert len(found) == (1 if first == "drop" else len(SHAPES) - 1) + (last != "drop")


KEPT = {"tensors": "*embed*", "method": "linear"}  # so that something is left


def test_a_drop_that_is_taken_back(four):
    """By `drop: false`: what was decided before the drop holds again. By options: nothing."""
    rules = [{"tensors": "*norm*", "take": "m2"}, {"tensors": "*norm*", "drop": True}]
    recipe = {"method": "ties", "base": "m0", "models": ["m1", "m2"]}
    more = {"tensors": "*norm*", "options": {"density": 0.5}}
    gone = build(load({**recipe, "rules": [*rules, more]}))
    assert NORM not in {t.at.name for t in gone.tasks}
    idle = "changes nothing: other rules decide on all of its tensors"
    assert gone.notices == (f"rules[0] {idle}", f"rules[2] {idle}")
    folder.make({**recipe, "rules": [*rules, {"tensors": "*norm*", "drop": False}]}, "out")
    assert torch.equal(load_file("out/model.safetensors")[NORM], load_file("m2/model.safetensors")[NORM])


def test_the_base_of_a_slice_is_read_where_its_first_model_is(four):
    base, others = four
    found = made("""
method: task_arithmetic
base: m0
slices:
  - models: [{model: m1, layers: 2-3}]
  - models: [{model: m2, layers: 0-1}, {model: m1, layers: 1-2}]
rules:
  - {layers: 3, take: m3}
""")
    a, b = others[:2]
    assert gap({"x": found[MLP.format(0)]}, {"x": a[MLP.format(2)]}) < 1e-6
    name = MLP.format(0)
    wanted = base[name] + (b[name] - base[name]) + (a[MLP.format(1)] - base[name])
    assert gap({"x": found[MLP.format(2)]}, {"x": wanted}) < 1e-6
    assert torch.equal(found[MLP.format(3)], others[2][MLP.format(1)])  # rules are for the result's layers


def test_slices_of_models_of_other_depths(four):
    """Of the same model twice, of a shorter one, and with a rule for layers that no input has."""
    _, others = four
    short = {n: t for n, t in others[1].items() if not any(f".{i}." in n for i in (2, 3))}
    save_file(short, "m2/model.safetensors")
    found = made("""
method: linear
weights: [0.25, 0.75]
slices:
  - models: [{model: m1, layers: 0-3}, {model: m1, layers: 0-3}]
  - models: [{model: m1, layers: 0-1}, {model: m1, layers: 2-3}]
  - models: [{model: m1, layers: 2-3}, {model: m2, layers: 0-1}]
rules: [{layers: 7, drop: true}]
""")
    a = others[0]
    assert gap({"x": found[MLP.format(4)]}, {"x": 0.25 * a[MLP.format(0)] + 0.75 * a[MLP.format(2)]}) < 1e-6
    assert gap({"x": found[MLP.format(6)]}, {"x": 0.25 * a[MLP.format(2)] + 0.75 * short[MLP.format(0)]}) < 1e-6
    assert MLP.format(7) not in found
    with pytest.raises(cw.CommonweightError, match=r"layers.2.*weight: it is read from .*layers.2.* of base \(m2\)"):
        build(load({"method": "ties", "base": "m2", "slices": [{"models": [{"model": "m1", "layers": "0-2"}]}]}))


def test_rules_that_are_for_nothing_are_told(four):
    rules = [{"tensors": "*atn*", "take": "m1"}, {"tensors": ["*mlp*"], "layers": "9-12", "drop": True}]
    notices = build(load({"method": "linear", "models": ["m1", "m2"], "rules": rules})).notices
    wanted = ("rules[0] is for no tensor: tensors *atn*", "rules[1] is for no tensor: tensors *mlp* in layers 9-12")
    assert notices == wanted


def test_mergekit_defaults_hold_where_no_filter_does(four):
    """TIES' density there is 1, not the paper's 0.2."""
    base, others = four
    text = "merge_method: ties\nbase_model: m0\nmodels: [{model: m1, parameters: {weight: 1}}, "
    found = made(text + "{model: m2, parameters: {weight: 1}}]\nparameters: {density: [{filter: mlp, value: 0.3}]}")
    whole = cw.merge.ties(others[:2], base, density=1.0, compat="mergekit")
    assert gap({"x": found[NORM]}, {"x": whole[NORM]}) < 1e-6


def test_mergekit_puts_the_base_among_the_models(four):
    """Karcher's mean has no base: the base is one of the models there."""
    base, others = four
    found = made("merge_method: karcher\nbase_model: m0\nmodels: [{model: m1}, {model: m2}]")
    assert gap(found, cw.merge.karcher([*others[:2], base], compat="mergekit")) < 1e-6


def test_an_adapter_on_a_model_gives_the_models_dtype(four):
    base, others = four
    for i, state in enumerate([base, *others]):
        save_file({n: t.bfloat16() for n, t in state.items()}, f"m{i}/model.safetensors")
    Path("m1/config.json").write_text(json.dumps({"num_hidden_layers": 4, "torch_dtype": "bfloat16"}))
    Path("ad").mkdir()
    Path("ad/adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "lora_alpha": 2, "r": 2}))
    factors = {"A": torch.randn(2, 8), "B": torch.randn(8, 2)}
    name = "base_model.model.model.layers.0.attn"
    save_file({f"{name}.lora_{k}.weight": t for k, t in factors.items()}, "ad/adapter_model.safetensors")
    found = made("method: linear\nmodels: [m1+ad, m2]")
    assert {t.dtype for t in found.values()} == {torch.bfloat16}
    folder.make({"method": "linear", "models": ["m1+ad", "m2"], "dtype": "float32"}, "wide")
    assert json.loads(Path("wide/config.json").read_text())["torch_dtype"] == "float32"


@pytest.mark.parametrize("text", ['{"vocab_size": 20', "[1, 2]", '"word"', b"\xff\xfe{}"])
def test_a_config_that_cannot_be_read_stops_before_the_work(text, four):
    Path("m1/config.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(cw.CommonweightError, match=r"m1/config.json: (not a whole JSON file|holds a)"):
        build(load({"method": "linear", "models": ["m1", "m2"]}))


def test_a_model_whose_folder_has_a_plus_in_its_name(four):
    """And where MODEL+ADAPTER can be read in several ways, the one that is there."""
    _, others = four
    Path("c++").mkdir()
    for name, state in (("c++/a", others[0]), ("c++/b+c", others[1])):
        Path(name).mkdir()
        save_file(state, f"{name}/model.safetensors")
    found = made("method: linear\nmodels: [c++/a, c++/b+c]")
    assert gap(found, cw.merge.linear(others[:2])) == 0
    with pytest.raises(cw.CommonweightError, match=r"model \(c\+\+/a\+m1\): m1: has no adapter_config.json"):
        build(load({"method": "linear", "models": ["c++/a+m1"]}))
    with pytest.raises(cw.CommonweightError, match="nowhere: no such file or folder"):
        build(load({"method": "linear", "models": ["c++/a+nowhere"]}))


def test_the_card_names_models_of_the_hub_and_no_others(four, monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **_: str(Path("m2").absolute()))
    Path("near").mkdir()
    Path("m1").rename("near/m1")
    folder.make({"method": "linear", "models": ["near/m1", "some/model"]}, "out")
    head = Path("out/README.md").read_text().split("---")[1]
    assert 'base_model:\n- "some/model"\n' in head and "near" not in head


def test_mergekit_pads_with_the_mean_of_all_rows(states):
    """Of embeddings, biases, and heads that lie the other way; whatever piece is asked for."""
    for name, words in WORDS.items():
        more = {"head.weight": torch.randn(3, len(words) + 1), "head.bias": torch.randn(len(words) + 1)}
        save_file({**states[name], **more}, f"{name}/model.safetensors")
    one = {"parameters": {"weight": 1}}
    recipe = {
        "merge_method": "linear", "models": [{"model": "m1", **one}, {"model": "m2", **one}],
        "tokenizer": {"source": "union", "pad_to_multiple_of": 8},
    }  # fmt: skip
    found = load_file(folder.make(recipe, "out").folder / "model.safetensors")
    for name in (EMBED, HEAD, "head.weight", "head.bias"):
        t = found[name].T if name == "head.weight" else found[name]
        assert t.shape[0] == 8 and t[:5].ne(0).all()
        torch.testing.assert_close(t[5:], t[:5].mean(0, keepdim=True).expand(3, *t.shape[1:]))
    source = build(load(recipe)).sources["m2"]
    for name in (EMBED, "head.weight", "head.bias"):
        flat = source.read(name).reshape(-1)
        spans = [(i, i + n) for i in range(7) for n in (1, 2, len(flat) - i)]
        assert all(torch.equal(source.flat(name, i, end - i), flat[i:end]) for i, end in spans)


def test_the_config_of_slices(four):
    """What it says of each layer goes with the layer; a model of several parts has it in the part for the text."""
    layers = {
        "num_hidden_layers": 4,
        "layer_types": ["a", "b", "c", "d"],
        "mlp_only_layers": [0, 2],
        "dtype": "bfloat16",
    }
    Path("m1/config.json").write_text(json.dumps({"text_config": {**layers, "vocab_size": 20}, **layers}))
    text = "method: passthrough\nslices: [{models: [{model: m1, layers: 0-2}]}, {models: [{model: m1, layers: %s}]}]"
    made(text % "2-3")
    found = json.loads(Path("out/config.json").read_text())
    wanted = {"num_hidden_layers": 5, "layer_types": ["a", "b", "c", "c", "d"], "mlp_only_layers": [0, 2, 3]}
    assert found == {"text_config": {**wanted, "dtype": "float32", "vocab_size": 20}, **wanted, "dtype": "float32"}
    Path("m1/config.json").write_text(json.dumps({**layers, "layer_types": ["a", "b", "c"]}))
    with pytest.raises(cw.CommonweightError, match="layer_types has 3 entries, a slice has layer 3; mend"):
        made(text % "3", "other")


LINEAR = "method: linear\nmodels: [m1, m2]\n"
SLICED = "merge_method: task_arithmetic\nbase_model: m0\nslices: [{sources: [{model: m1, layer_range: "


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LINEAR + "rules: [{tensors: '*', drop: 'false'}]", r"rules\[0\]: drop is 'false'; wanted true or false"),
        (LINEAR + "rules: [{layers: null, drop: true}]", r"rules\[0\]: say which tensors"),
        (LINEAR + "rules: [{tensors: [], drop: true}]", r"rules\[0\]: tensors is \[\]; wanted a pattern"),
        (LINEAR + "rules: [{layers: [], drop: true}]", r"rules\[0\]: layers is \[\]; wanted ranges"),
        (LINEAR + "rules: [{tensors: 5, drop: true}]", r"rules\[0\]: tensors is 5; wanted a pattern"),
        (LINEAR + "rules: [{tensors: {a: 1}, drop: true}]", r"rules\[0\]: tensors is {'a': 1}; wanted a pattern"),
        (LINEAR + "rules: [{tensors: '*'}]", r"rules\[0\]: it says nothing; wanted take alone, drop alone"),
        (LINEAR + "rules: [{tensors: '*', take: m1, drop: true}]", "it says take, drop; wanted take alone"),
        (LINEAR + "rules: [{tensors: '*', take: m1, weights: [1, 0]}]", "it says take, weights; wanted take alone"),
        (LINEAR + "tokenizer: {multiple: many}", "tokenizer.multiple is 'many'; wanted a whole number"),
        (LINEAR + "tokenizer: {multiple: true}", "tokenizer.multiple is True; wanted a whole number"),
        (LINEAR + "tokenizer: {source: [m1]}", r"tokenizer.source is \['m1'\]; wanted a path"),
        ("method: linear\nmodels: []", r"models is \[\]; wanted a list of at least one"),
        ("method: linear\nslices: []", r"slices is \[\]; wanted a list of at least one"),
        ("method: linear\nslices: [{models: []}]", r"slices\[0\].models is \[\]; wanted a list of at least one"),
        (OWN + "options: {density: &x [*x]}", "contains itself"),
        (OWN + "dtype: [float16]", "unknown dtype"),
        ("[" * 5000, "not valid YAML"),
        ("method: 2024-99-99", "not valid YAML: '2024-99-99' cannot be read .month must be in"),
        ("merge_method: linear\nmodels: []", r"models is \[\]; wanted a list of at least one"),
        ("merge_method: [ties]\nmodels: [{model: m1}]", "unknown merge_method"),
        ("merge_method: passthrough\nslices: []", r"slices is \[\]; wanted a list of at least one"),
        ("merge_method: passthrough\nslices: [{sources: []}]", r"slices\[0\].sources is \[\]; wanted a list of"),
        ("merge_method: linear\nmodels: [{model: m1}]\ntokenizer: {pad_to_multiple_of: x}", "_multiple_of is 'x'"),
        ("merge_method: linear\nmodels: [{model: m1}]\ntokenizer: {tokens: [a]}", "tokenizer.tokens is"),
        (SLICED + "[a, b]}]}]", r"layer_range is \['a', 'b'\]; wanted \[first, last \+ 1\]"),
        (SLICED + "[0.0, 2.0]}]}]", r"layer_range is \[0.0, 2.0\]; wanted \[first, last \+ 1\]"),
        (SLICED + "[0, 2]}]}]", r"slices\[0\]: base_model m0 is not among the sources; list it there"),
        ("merge_method: linear\nmodels: [{model: m1}, {model: m1}]", "models: m1 appears twice"),
        ("merge_method: linear\nbase_model: m0\nmodels: [{model: m1, parameters: {weight: 1}}]", "of m0 is missing"),
        ("merge_method: slerp\nbase_model: m0\nmodels: [{model: m1}]", "t of slerp is missing; it has no default"),
        (
            "merge_method: slerp\nbase_model: m0\nmodels: [{model: m1}]\n"
            "parameters: {t: [{filter: attn, value: 0.5}]}", "embed_tokens.weight: t of slerp is missing",
        ),
        ("merge_method: slerp\nmodels: [{model: m1}, {model: m2}]\nparameters: {t: 0.5}", "base_model is missing"),
    ],
)  # fmt: skip
def test_recipes_that_say_nothing_sensible(text, message, four):
    refused(text, message)


@pytest.mark.parametrize("most", [10**9, 400])
def test_the_plan_has_the_sizes_of_the_files(most, four):
    built = build(load({"method": "linear", "models": ["m1", "m2"], "dtype": "bfloat16"}))
    p = plans.plan(built, 2, most)
    out = folder.write(built, "out", shard_bytes=most).folder
    written = {f.name: f.stat().st_size for f in out.iterdir() if f.name.startswith("model")}
    assert p.writes == written and len(written) == (1 if most > 400 else 5 + 1)


def test_the_plan_lists_statistics(four):
    base, _ = four
    for i in (1, 2):
        fisher = {f"fisher/{n}": torch.ones(t.shape) for n, t in base.items()}
        Statistics(f"of m{i}", {**fisher, "gram/x": torch.ones(5)}).save(f"s{i}.safetensors")
    options = {"statistics": ["s1.safetensors", "s2.safetensors"]}
    p = plans.plan(build(load({"method": "fisher", "models": ["m1", "m2"], "options": options})), 2)
    assert len(p.notices) == 2 and all("does not say on which weights" in n for n in p.notices)
    size = sum(4 * t.numel() for t in base.values())
    assert p.reads[f"fisher: statistics[1] ({Path('s2.safetensors')})"] == (len(base), size)
    words = plans.text(p)
    assert "fisher (statistics=[s1.safetensors, s2.safetensors]" in words and " object at " not in words


def test_factors_of_an_adapter_are_no_model(four):
    """Its file stands for its folder; where that is none, nothing is merged."""
    name = "base_model.model.model.layers.0.attn"
    for ad in ("ad", "be"):
        Path(ad).mkdir()
        Path(f"{ad}/adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "lora_alpha": 2, "r": 2}))
        factors = {f"{name}.lora_A.weight": torch.randn(2, 8), f"{name}.lora_B.weight": torch.randn(8, 2)}
        save_file(factors, f"{ad}/adapter_model.safetensors")
    files = [f"{ad}/adapter_model.safetensors" for ad in ("ad", "be")]
    with pytest.raises(cw.CommonweightError, match=r"ad/adapter_model.safetensors: an adapter; write MODEL"):
        made(f"method: linear\nmodels: [{', '.join(files)}]")
    by_file = made(f"method: linear\nbase: m0\nmodels: [{', '.join(files)}]", "one")
    by_folder = made("method: linear\nbase: m0\nmodels: [ad, be]", "two")
    assert all(torch.equal(t, by_folder[n]) for n, t in by_file.items())
    Path("ad/adapter_config.json").unlink()
    with pytest.raises(cw.CommonweightError, match="has a factor of LoRA; A and B merged apart are not"):
        made(f"method: linear\nmodels: [{files[0]}]", "other")


def test_a_base_that_adapters_stand_on_is_no_error_with_linear(four):
    """Nor is it merged: the mean is of what the adapters make of it."""
    base, _ = four
    name, factors = "base_model.model.model.layers.0.attn", []
    for ad in ("ad", "be"):
        Path(ad).mkdir()
        Path(f"{ad}/adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "lora_alpha": 2, "r": 2}))
        factors.append({"A": torch.randn(2, 8), "B": torch.randn(8, 2)})
        save_file({f"{name}.lora_{k}.weight": t for k, t in factors[-1].items()}, f"{ad}/adapter_model.safetensors")
    found = made("method: linear\nbase: m0\nmodels: [ad, be]")["model.layers.0.attn.weight"]
    wanted = base["model.layers.0.attn.weight"] + sum(f["B"] @ f["A"] for f in factors) / 2
    assert torch.allclose(found, wanted, atol=1e-6)
    with pytest.raises(cw.CommonweightError, match="linear takes no base; leave base out"):
        made("method: linear\nbase: m0\nmodels: [m1, m2]", "other")
