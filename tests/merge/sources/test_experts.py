"""Tenants on experts: the model's tensors hold all of a projection, the checkpoint's one each, or turned ones."""

from __future__ import annotations

import pytest
import torch
import transformers as tf
from safetensors.torch import load_file

import commonweight as cw
from commonweight.merge.sources.model import open_source
from commonweight.merge.sources.tenanted import Tenanted
from tests.laws.subjects import small, stir
from tests.merge.sample import gap

SMALL = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "vocab_size": 32, "head_dim": 8, "max_position_embeddings": 32,
}  # fmt: skip
KINDS = {
    "mixtral": tf.MixtralConfig(**SMALL, num_local_experts=4),
    "qwen3_moe": tf.Qwen3MoeConfig(**SMALL, num_experts=4, moe_intermediate_size=8, num_experts_per_tok=2),
    "gpt_oss": tf.GptOssConfig(
        **{**SMALL, "intermediate_size": 16}, num_local_experts=4, pad_token_id=0, eos_token_id=1
    ),
    "llama4": tf.Llama4TextConfig(**SMALL, intermediate_size_mlp=16, num_local_experts=4, pad_token_id=0),
}  # fmt: skip


@pytest.fixture(scope="module", params=KINDS)
def base(request, tmp_path_factory):
    """A model, and where it lies as transformers saves it."""
    tf.utils.logging.disable_progress_bar()
    torch.manual_seed(0)
    model = tf.AutoModelForCausalLM.from_config(KINDS[request.param]).eval()
    path = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(path)
    return model, path


def tenant(base, path, method, **options):
    """A stirred one's file, and the checkpoint of a model with its merged weights."""
    model, folder = base
    host = cw.Host(model)
    stir(host.add("a", method, **{**small(method), **options}))
    merged = host.merged("a")
    host.save("a", path / "a.safetensors")
    host.close()
    was = {n: t.clone() for n, t in model.state_dict().items()}
    model.load_state_dict({**was, **merged})
    model.save_pretrained(path / "wanted")
    model.load_state_dict(was)
    before, after = (load_file(p / "model.safetensors") for p in (folder, path / "wanted"))
    assert any("experts" in n and not torch.equal(t, after[n]) for n, t in before.items())
    return after


@pytest.mark.parametrize("method", ["lora", "dora", "full", "bitfit", "lora-xs", "mos"])
def test_a_checkpoint_as_the_host_merges_it(base, method, tmp_path):
    if method == "bitfit" and base[0].config.model_type != "gpt_oss":
        method, options = "ia3", {}
    else:
        options = {}
    wanted = tenant(base, tmp_path, method, **options)
    source = Tenanted("model", open_source(base[1], "base"), tmp_path / "a.safetensors")
    assert not source.notices and source.shapes.keys() == wanted.keys()
    for name, t in wanted.items():
        torch.testing.assert_close(source.read(name), t, atol=1e-6, rtol=1e-5, check_dtype=False, msg=name)
        third = t.numel() // 3
        part = source.flat(name, third, third + 1).float()
        torch.testing.assert_close(part, t.reshape(-1)[third : 2 * third + 1].float(), atol=1e-6, rtol=1e-5)
    said, kept = source.held(0, 1), sum(t.nbytes for pair in source._kept.values() for t in pair)
    assert kept <= said


def test_in_a_merge(base, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    wanted = tenant(base, tmp_path, "lora")
    done = cw.merge.make({"method": "linear", "models": [f"{base[1]}+a.safetensors"]}, "out")
    assert gap(load_file(done.folder / "model.safetensors"), wanted) < 1e-5
    assert tf.AutoModelForCausalLM.from_pretrained("out").config.model_type == base[0].config.model_type


def test_another_base_is_refused(base, tmp_path):
    tenant(base, tmp_path, "lora", sites="*experts*")
    model, _ = base
    kind = model.config.model_type
    torch.manual_seed(1)
    tf.AutoModelForCausalLM.from_config(model.config).save_pretrained(tmp_path / "other")
    with pytest.raises(cw.CommonweightError, match="was trained on another base"):
        Tenanted("model", open_source(tmp_path / "other", "other"), tmp_path / "a.safetensors")
    wider = type(model.config)(**{**model.config.to_dict(), "hidden_size": 32})
    tf.AutoModelForCausalLM.from_config(wider).save_pretrained(tmp_path / "wider")
    with pytest.raises(cw.CommonweightError, match=r"reads a weight of .* give the base on which it was trained"):
        Tenanted("model", open_source(tmp_path / "wider", "wider"), tmp_path / "a.safetensors")
    dense = tf.LlamaForCausalLM(tf.LlamaConfig(**SMALL))
    dense.save_pretrained(tmp_path / "dense")
    with pytest.raises(cw.CommonweightError, match=r"has a tenant or adapter that reads it, but dense .* has no such"):
        Tenanted(kind, open_source(tmp_path / "dense", "dense"), tmp_path / "a.safetensors")
