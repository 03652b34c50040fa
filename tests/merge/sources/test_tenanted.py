"""A model with a tenant on it, read a piece at a time, has the weights that Host.merged gives."""

from __future__ import annotations

import json

import peft
import pytest
import torch
import transformers as tf
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import commonweight as cw
from commonweight.merge.sources.model import open_source
from commonweight.merge.sources.tenanted import Tenanted
from tests.laws.subjects import can, small, stir
from tests.merge.sample import gap
from tests.models import make

METHODS = ["lora", "vera", "dora", "pissa", "oft", "ia3", "bitfit", "svf", "lora-xs", "full", "mos", "lntuning"]


def saved(model, path):
    path.mkdir()
    save_file({n: t.clone() for n, t in model.state_dict().items()}, path / "model.safetensors")
    return path


def without(path, *keys):
    """The file as it was written before headers had these fields."""
    with safe_open(path, "pt") as f:
        header, tensors = json.loads(f.metadata()["commonweight"]), {k: f.get_tensor(k) for k in f.keys()}
    for key in (*keys, "digest"):
        del header[key]
    save_file(tensors, path, {"commonweight": json.dumps(header)})
    return path


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
def test_weights_are_those_of_the_host(kind, method, tmp_path):
    model = make(kind)[0]
    host = cw.Host(model)
    if not can(method, host) or (kind, method) == ("llama", "bitfit"):
        pytest.skip("nothing to read here")
    path = saved(model, tmp_path / "base")
    stir(host.add("a", method, **small(method)))
    host.save("a", tmp_path / "a.safetensors")
    source = Tenanted("model", open_source(path, "base"), tmp_path / "a.safetensors")
    expected = {**load_file(path / "model.safetensors"), **host.merged("a")}
    assert expected.keys() == source.shapes.keys()
    for name, t in expected.items():
        torch.testing.assert_close(source.read(name), t, atol=1e-5, rtol=1e-5)
        third = t.numel() // 3
        part = source.flat(name, third, third + 1)
        torch.testing.assert_close(part, t.reshape(-1)[third : 2 * third + 1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("method", "options"), [("lora", {"rank": 3}), ("full", {}), ("dora", {"rank": 3})])
@pytest.mark.parametrize(("kind", "sites"), [("llama", "*embed_tokens"), ("bert", "*word_embeddings|*query"), ("gpt2", "*wte"), ("vit", "*projection|*query")])  # noqa: E501  # fmt: skip
def test_tables_and_convolutions_lie_as_they_do(kind, sites, method, options, tmp_path):
    model = make(kind)[0]
    host = cw.Host(model)
    path = saved(model, tmp_path / "base")
    stir(host.add("a", method, sites=sites, **options))
    host.save("a", tmp_path / "a.safetensors")
    source = Tenanted("model", open_source(path, "base"), tmp_path / "a.safetensors")
    before, expected = load_file(path / "model.safetensors"), host.merged("a")
    assert any((t - before[n]).abs().max() > 1e-3 for n, t in expected.items())
    for name in expected.keys() - ({"lm_head.weight"} if kind == "gpt2" else set()):  # tied; transformers saves it once
        torch.testing.assert_close(source.read(name), expected[name], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_linear_layers_beside_conv1d_lie_as_they_do(method, tmp_path):
    """GPT-2's classifier has a head (labels, width) among weights that lie as (inp, out)."""
    config = tf.GPT2Config(
        n_embd=32, n_layer=2, n_head=4, vocab_size=61, n_positions=32, num_labels=3, bos_token_id=1, eos_token_id=2
    )
    host = cw.Host(tf.GPT2ForSequenceClassification(config))
    path = saved(host.model, tmp_path / "base")
    stir(host.add("a", method, **{**small(method), "sites": "score|*c_attn"}))
    host.save("a", tmp_path / "a.safetensors")
    source = Tenanted("model", open_source(path, "base"), tmp_path / "a.safetensors")
    merged = host.merged("a")
    assert "score.weight" in merged
    for name, t in merged.items():
        torch.testing.assert_close(source.read(name), t, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_what_it_holds_is_said(method, tmp_path):
    """Pools and the changes at hand, after every tensor was read: what it says is enough, and not ten times as much."""
    model = make("bert")[0]
    host = cw.Host(model)
    stir(host.add("a", method, **small(method)))
    host.save("a", tmp_path / "a.safetensors")
    source = Tenanted("model", open_source(saved(model, tmp_path / "base"), "base"), tmp_path / "a.safetensors")
    said = source.held(0, 1)
    for name in source.shapes:
        source.read(name)
    kept = sum(t.nbytes for pair in source._kept.values() for t in pair)
    pools = sum(p.numel() * p.element_size() for p in host["a"].parameters())
    assert kept + pools <= said < 10 * (kept + pools)
    assert source.held(100, 2) > said


def test_in_a_recipe_beside_models(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = make("bert")[0]
    saved(model, tmp_path / "base")
    host = cw.Host(cw.Classifier(model))  # modules have another name in front than in the file
    for i, name in enumerate("ab"):
        stir(host.add(name, "lora", rank=2, labels=2), seed=i)
        host.save(name, f"{name}.safetensors")
    cw.Commons("shop").publish(host, "b")
    base = load_file("base/model.safetensors")
    full = [{**base, **{k.partition(".")[2]: v for k, v in host.merged(n).items()}} for n in "ab"]
    for i, models in enumerate((["a.safetensors", "shop:b"], ["base+a.safetensors", "base+shop:b"])):
        recipe = {"method": "ties", "base": "base", "models": models, "options": {"density": 0.5}}
        done = cw.merge.make(recipe, f"out{i}")
        assert gap(load_file(done.folder / "model.safetensors"), cw.merge.ties(full, base, density=0.5)) < 1e-5
    assert "its head (head) is no part" in (tmp_path / "out0" / "merge.json").read_text()


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_another_base_is_refused(kind, dtype, tmp_path):
    """By a fingerprint that a host and a checkpoint on disk share, in either precision, fused rows and wrappers too."""
    model = make(kind)[0]
    path = saved(model, tmp_path / "base")
    other = saved(make(kind, seed=1)[0], tmp_path / "other")
    fused = {"*.c_attn": 3} if kind == "gpt2" else None
    host = cw.Host((cw.Classifier(model) if kind == "bert" else model).to(dtype), fused=fused)
    file = tmp_path / "a.safetensors"
    for method in ("lora", "full"):
        stir(host.add("a", method, **small(method)))
        host.save("a", file)
        host.remove("a")
        assert not Tenanted("model", open_source(path, "base"), file).notices
        said = r"trained on another base: .* have the fingerprint [0-9a-f]{8} there, [0-9a-f]{8} in base"
        with pytest.raises(cw.CommonweightError, match=said):
            Tenanted("model", open_source(other, "base"), file)
    (notice,) = Tenanted("model", open_source(other, "base"), without(file, "weights")).notices
    assert "does not say on which weights it was trained" in notice


def test_what_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    gpt2 = cw.Host(make("gpt2")[0])
    gpt2.add("g", "bitfit")
    without(gpt2.save("g", "g.safetensors"), "order", "kinds")
    with pytest.raises(cw.CommonweightError, match="the order of its sites in the model cannot be told from the file"):
        Tenanted("model", open_source(saved(gpt2.model, tmp_path / "gpt2"), "base"), "g.safetensors")
    model = make("llama")[0]
    saved(model, tmp_path / "base")
    host = cw.Host(model)
    stir(host.add("a", "loreft"))
    host.save("a", "a.safetensors")
    base = open_source("base", "base")
    with pytest.raises(cw.CommonweightError, match="which changes no weights"):
        Tenanted("model", base, "a.safetensors")
    with pytest.raises(cw.CommonweightError, match=r"a\.safetensors: a tenant; write MODEL\+a.safetensors"):
        cw.merge.make({"method": "linear", "models": ["a.safetensors"]}, "out")
    stir(host.add("p", "lora-xs", rank=2))
    host.save("p", "p.safetensors")
    torch.manual_seed(5)
    other = make("llama")[0]
    with torch.no_grad():
        for p in other.parameters():
            p.copy_(torch.randn_like(p))
    with pytest.raises(cw.CommonweightError, match="what lora-xs derives from the base differs here"):
        Tenanted("model", open_source(saved(other, tmp_path / "other"), "base"), without("p.safetensors", "weights"))
    small = {n: t for n, t in load_file("base/model.safetensors").items() if "q_proj" not in n}
    save_file(small, "base/model.safetensors")
    with pytest.raises(cw.CommonweightError, match=r"q_proj.weight: model has a tenant or adapter that"):
        Tenanted("model", open_source("base", "base"), "p.safetensors")


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated")
def test_a_tenant_beside_an_adapter_of_peft(tmp_path, monkeypatch):
    """Its base is more than the weights that it reads; a base alone would answer otherwise, in silence."""
    monkeypatch.chdir(tmp_path)
    saved(make("llama")[0], tmp_path / "base")
    host = cw.Host(peft.get_peft_model(make("llama")[0], peft.LoraConfig(r=2, target_modules=["q_proj"])))
    stir(host.add("a", "lora", rank=2))
    host.save("a", "a.safetensors")
    for model, base in (("base+a.safetensors", None), (host["a"], "base")):
        with pytest.raises(cw.CommonweightError, match="carries the PEFT adapter default, which"):
            if base is None:
                cw.merge.make({"method": "linear", "models": [model]}, "out")
            else:
                cw.merge.linear([model], base)
    host.load("b", "a.safetensors")
    assert all(torch.equal(p, host["a"].pools[n]) for n, p in host["b"].pools.items())


def test_the_tenant_of_a_packed_copy_and_one_of_other_widths(tmp_path):
    path = saved(make("llama")[0], tmp_path / "base")
    host = cw.Host(make("llama")[0])
    stir(host.add("a", "lora", rank=2))
    host.save("a", tmp_path / "a.safetensors")
    with safe_open(tmp_path / "a.safetensors", "pt") as f:
        header, tensors = json.loads(f.metadata()["commonweight"]), {k: f.get_tensor(k) for k in f.keys()}
    del header["digest"]
    origin = {**header, "float": header["weights"], "weights": "0" * 64, "quantised": "bitsandbytes nf4"}
    save_file(tensors, tmp_path / "packed.safetensors", {"commonweight": json.dumps(origin)})
    name = next(iter(host.merged("a")))
    source = Tenanted("model", open_source(path, "base"), tmp_path / "packed.safetensors")
    torch.testing.assert_close(source.read(name), host.merged("a")[name])
    wider = saved(tf.LlamaForCausalLM(tf.LlamaConfig(
        hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, vocab_size=61
    )), tmp_path / "wider")  # fmt: skip
    with pytest.raises(cw.CommonweightError, match=r"reads a weight of .* give the base on which it was trained"):
        Tenanted("model", open_source(wider, "base"), tmp_path / "a.safetensors")
