"""Slices and gradients of models with several stacks, and configs that go with what is written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers as tf
from safetensors.torch import load_file, save_file

import commonweight as cw
from commonweight.merge.recipe import load
from commonweight.merge.recipe.build import build

SMALL = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "vocab_size": 32}
TEXT = {**SMALL, "num_hidden_layers": 4, "num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 32}
VISION = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "image_size": 8, "patch_size": 4}
T5 = {"vocab_size": 32, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_heads": 2}


def saved(kind, config, name, seed=0):
    torch.manual_seed(seed)
    kind(config).save_pretrained(name)


def state(folder):
    return {k: v for f in Path(folder).glob("*.safetensors") for k, v in load_file(f).items()}


def stacked(*spans, rules=()):
    slices = [{"models": [{"model": m, "layers": f"{a}-{b}"}]} for m, a, b in spans]
    return {"method": "passthrough", "slices": slices, "rules": list(rules)}


def whole(kind, folder):
    """transformers finds what it wants, and nothing else."""
    _, told = kind.from_pretrained(folder, output_loading_info=True)
    assert not told["missing_keys"] and not told["unexpected_keys"] and not told["mismatched_keys"], told
    return json.loads((Path(folder) / "config.json").read_text())


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tf.utils.logging.disable_progress_bar()


def test_a_head_that_is_called_embedding_is_the_last_slice_s():
    config = tf.GPTNeoXConfig(**SMALL, num_hidden_layers=3, max_position_embeddings=32, tie_word_embeddings=False)
    for i, name in enumerate("ab"):
        saved(tf.GPTNeoXForCausalLM, config, name, i)
    cw.merge.make(stacked(("a", 0, 1), ("b", 1, 2)), "out")
    out, a, b = map(state, ("out", "a", "b"))
    assert torch.equal(out["gpt_neox.embed_in.weight"], a["gpt_neox.embed_in.weight"])
    for name in ("embed_out.weight", "gpt_neox.final_layer_norm.weight"):
        assert torch.equal(out[name], b[name]), name
    assert whole(tf.GPTNeoXForCausalLM, "out")["num_hidden_layers"] == 4


def test_slices_are_of_the_language_model_and_a_vision_tower_stays_whole():
    text = tf.Gemma3TextConfig(**TEXT, sliding_window=8, sliding_window_pattern=2)
    vision = {**VISION, "num_hidden_layers": 4}
    config = tf.Gemma3Config(text_config=text.to_dict(), vision_config=vision, mm_tokens_per_image=4)
    saved(tf.Gemma3ForConditionalGeneration, config, "a")
    recipe = stacked(("a", 0, 1), ("a", 1, 3))
    cw.merge.make(recipe, "out")
    made = whole(tf.Gemma3ForConditionalGeneration, "out")
    kinds = config.text_config.layer_types
    assert made["text_config"]["num_hidden_layers"] == 5 and made["vision_config"]["num_hidden_layers"] == 4
    assert made["text_config"]["layer_types"] == [kinds[i] for i in (0, 1, 1, 2, 3)]
    assert any("slices are of language_model.model.layers; " in n for n in build(load(recipe)).notices)


def test_an_encoder_and_a_decoder_of_one_depth_are_cut_alike():
    saved(tf.T5ForConditionalGeneration, tf.T5Config(**T5, num_layers=3, num_decoder_layers=3), "a")
    cw.merge.make(stacked(("a", 0, 1), ("a", 1, 2)), "out")
    made = whole(tf.T5ForConditionalGeneration, "out")
    assert made["num_layers"] == made["num_decoder_layers"] == 4
    with pytest.raises(cw.CommonweightError, match=r"2 tensors have no place .*layer 2 of it is layer 0 of its model"):
        cw.merge.make(stacked(("a", 0, 1), ("a", 0, 2)), "other")  # positions are the first layer's alone
    saved(tf.T5ForConditionalGeneration, tf.T5Config(**T5, num_layers=3, num_decoder_layers=2), "b")
    with pytest.raises(cw.CommonweightError, match=r"block has 2 blocks.*must have one depth"):
        cw.merge.make(stacked(("b", 0, 1)), "other")


def test_of_two_towers_the_text_is_cut():
    parts = ({**SMALL, "num_hidden_layers": 3, "max_position_embeddings": 8}, {**VISION, "num_hidden_layers": 3})
    saved(tf.CLIPModel, tf.CLIPConfig(text_config=parts[0], vision_config=parts[1], projection_dim=8), "a")
    cw.merge.make(stacked(("a", 0, 1)), "out")
    made = whole(tf.CLIPModel, "out")
    assert made["text_config"]["num_hidden_layers"] == 2 and made["vision_config"]["num_hidden_layers"] == 3


def test_a_gradient_goes_from_end_to_end_in_each_stack():
    for i, name in enumerate("ab"):
        saved(tf.T5ForConditionalGeneration, tf.T5Config(**T5, num_layers=4, num_decoder_layers=2), name, i)
    recipe = {
        "method": "linear",
        "models": [{"model": n, "weight": {"gradient": [i, 1 - i]}} for i, n in enumerate("ab")],
    }
    cw.merge.make(recipe, "out")
    out, a, b = map(state, ("out", "a", "b"))
    for part, last in (("encoder", 3), ("decoder", 1)):
        for block, wanted in ((0, b), (last, a)):
            name = f"{part}.block.{block}.layer.0.SelfAttention.q.weight"
            torch.testing.assert_close(out[name], wanted[name])


def experts(kind, **more):
    base = {**SMALL, "num_hidden_layers": 4, "num_key_value_heads": 2, "max_position_embeddings": 32}
    return kind(**{**base, **more})


def test_a_list_of_layers_goes_with_them():
    """Llama 4 has its experts where a list says, and rotary embeddings where another does."""
    config = experts(tf.Llama4TextConfig, num_local_experts=2, intermediate_size_mlp=24, interleave_moe_layer_step=2)
    saved(tf.Llama4ForCausalLM, config, "a")
    cw.merge.make(stacked(("a", 0, 1), ("a", 1, 3)), "out")
    made = whole(tf.Llama4ForCausalLM, "out")
    assert made["moe_layers"] == [1, 2, 4] and made["no_rope_layers"] == [
        config.no_rope_layers[i] for i in (0, 1, 1, 2, 3)
    ]


def test_a_kind_that_follows_from_a_number():
    """DeepSeek's first layers have no experts: fewer of them are said, one in between cannot be."""
    low = {"q_lora_rank": 4, "kv_lora_rank": 4, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8}
    some = {"n_routed_experts": 2, "num_experts_per_tok": 1, "n_group": 1, "topk_group": 1, "moe_intermediate_size": 8}
    config = experts(tf.DeepseekV3Config, first_k_dense_replace=2, **low, **some)
    saved(tf.DeepseekV3ForCausalLM, config, "a")
    cw.merge.make(stacked(("a", 1, 2), ("a", 2, 3)), "out")
    assert whole(tf.DeepseekV3ForCausalLM, "out")["first_k_dense_replace"] == 1
    with pytest.raises(cw.CommonweightError, match=r"layer 3 of it is layer 0 of its model, and a layer's"):
        cw.merge.make(stacked(("a", 0, 2), ("a", 0, 3)), "other")
    assert not Path("other").exists()


def test_what_older_configs_leave_to_the_layer_s_number_is_written_out():
    config = tf.Gemma3TextConfig(**TEXT, sliding_window=8, layer_types=["sliding_attention", "full_attention"] * 2)
    saved(tf.Gemma3ForCausalLM, config, "a")
    told = json.loads(Path("a/config.json").read_text())
    kinds = [told["layer_types"][i] for i in (1, 3)]
    cw.merge.make(stacked(("a", 1, 1), ("a", 3, 3)), "out")
    assert whole(tf.Gemma3ForCausalLM, "out")["layer_types"] == kinds


def test_a_config_of_no_known_model_is_read_by_names():
    tensors = {f"layers.{i}.w.weight": torch.randn(3, 3) for i in range(3)} | {"embed.weight": torch.randn(5, 3)}
    Path("a").mkdir()
    save_file(tensors, "a/model.safetensors")
    Path("a/config.json").write_text(json.dumps({"num_hidden_layers": 3}))
    built = build(load(stacked(("a", 0, 1), ("a", 1, 2))))
    assert built.config is not None and built.config["num_hidden_layers"] == 4
    assert any("that slices are of layers is told by names" in n for n in built.notices)


def test_the_blocks_that_a_few_words_can_ask_for():
    Path("a").mkdir()
    save_file({"layers.0.w.weight": torch.randn(3, 3)}, "a/model.safetensors")
    with pytest.raises(cw.CommonweightError, match=r"slices: 20,002 blocks; wanted at most 10,000"):
        build(load(stacked(("a", 0, 10_000), ("a", 0, 10_000))))


def test_a_tied_model_beside_one_with_a_head_of_its_own():
    llama = {**SMALL, "num_hidden_layers": 1, "num_key_value_heads": 1}
    for i, name in enumerate("ab"):
        saved(tf.LlamaForCausalLM, tf.LlamaConfig(**llama, tie_word_embeddings=not i), name, i)
    recipe = {"method": "linear", "models": ["a", "b"]}
    cw.merge.make(recipe, "out")
    out, a, b = map(state, ("out", "a", "b"))
    table = "model.embed_tokens.weight"
    torch.testing.assert_close(out["lm_head.weight"], (a[table] + b["lm_head.weight"]) / 2)
    assert whole(tf.LlamaForCausalLM, "out")["tie_word_embeddings"] is False
    assert any("a ties it to" in n for n in build(load(recipe)).notices)
    Path("a/config.json").write_text(
        json.dumps({**json.loads(Path("a/config.json").read_text()), "tie_word_embeddings": False})
    )
    with pytest.raises(cw.CommonweightError, match=r"lm_head.weight: model .*a.* has no such tensor"):
        build(load(recipe))


def test_a_head_that_is_tied_by_default_and_written_all_the_same():
    config = tf.Gemma2Config(**{**TEXT, "num_hidden_layers": 1})
    for i, name in enumerate("ab"):
        saved(tf.Gemma2ForCausalLM, config, name, i)
        told = json.loads(Path(f"{name}/config.json").read_text())
        told.pop("tie_word_embeddings", None)
        Path(f"{name}/config.json").write_text(json.dumps(told))
    b = state("b")
    save_file({**b, "lm_head.weight": b["model.embed_tokens.weight"].clone()}, "b/model.safetensors", {"format": "pt"})
    cw.merge.make({"method": "linear", "models": ["a", "b"]}, "out")
    assert "lm_head.weight" not in state("out")
    whole(tf.Gemma2ForCausalLM, "out")


def test_buffers_that_some_files_have():
    tensors = {"h.0.attn.c.weight": torch.randn(3, 3), "h.0.attn.c.bias": torch.randn(3)}
    more = {"h.0.attn.bias": torch.ones(1, 1, 4, 4), "h.0.rotary_emb.inv_freq": torch.ones(2)}
    for name, found in (("a", tensors), ("b", tensors | more)):
        Path(name).mkdir()
        save_file(found, f"{name}/model.safetensors")
    built = build(load({"merge_method": "linear", "models": [{"model": n, "parameters": {"weight": 1}} for n in "ab"]}))
    assert {t.at.name for t in built.tasks} == set(tensors)
    assert any("2 buffers that not all models have are left out" in n for n in built.notices)
    assert set(cw.merge.linear(["a", "b"])) == set(tensors)
    assert set(cw.merge.linear(["b", "b"])) == set(tensors | more)
