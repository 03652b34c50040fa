"""Adapters trained while transformers had other names for the modules: PEFT's answers, under the names of today."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as tf
from safetensors.torch import load_file, save_file
from torch import Tensor

import commonweight as cw

peft = pytest.importorskip("peft")

pytestmark = pytest.mark.filterwarnings("ignore")
TOWER: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4
}  # fmt: skip
TEXT = {**TOWER, "vocab_size": 61, "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
IDS = torch.tensor([[58, 60, 60, 60, 60, 5, 6, 7]])
PIXELS = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def vit() -> tuple[Any, dict[str, Tensor]]:
    config = tf.ViTConfig(**TOWER, image_size=8, patch_size=4, num_labels=3)
    return tf.ViTForImageClassification(config), {"pixel_values": PIXELS}


def of_vit(key: str) -> str:
    key = key.replace("vit.layers.", "vit.encoder.layer.")
    for new, old in (("attention.q_proj", "attention.attention.query"), ("attention.o_proj", "attention.output.dense"),
                     ("mlp.fc1", "intermediate.dense"), ("mlp.fc2", "output.dense")):  # fmt: skip
        key = key.replace(new, old)
    return key


def llava() -> tuple[Any, dict[str, Tensor]]:
    vision = tf.CLIPVisionConfig(**TOWER, image_size=8, patch_size=4)
    config = tf.LlavaConfig(text_config=tf.LlamaConfig(**TEXT), vision_config=vision, image_token_id=60,
                            vision_feature_layer=-1)  # fmt: skip
    return tf.LlavaForConditionalGeneration(config), {"input_ids": IDS, "pixel_values": PIXELS}


def of_llava(key: str) -> str:
    key = key.replace(".model.language_model.", ".language_model.model.")
    return key.replace(".model.vision_tower.", ".vision_tower.vision_model.")


def qwen() -> tuple[Any, dict[str, Tensor]]:
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}
    vision = {"depth": 1, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2, "patch_size": 4,
              "temporal_patch_size": 1}  # fmt: skip
    config = tf.Qwen2VLConfig(text_config={**TEXT, "rope_parameters": rope}, vision_config=vision, image_token_id=60,
                              video_token_id=59, vision_start_token_id=58, vision_end_token_id=57)  # fmt: skip
    batch = {"input_ids": IDS, "pixel_values": torch.randn(16, 48, generator=torch.Generator().manual_seed(1)),
             "image_grid_thw": torch.tensor([[1, 4, 4]]), "mm_token_type_ids": IDS.eq(60).int()}  # fmt: skip
    return tf.Qwen2VLForConditionalGeneration(config), batch


def of_qwen(key: str) -> str:
    return key.replace(".model.language_model.", ".model.").replace(".model.visual.", ".visual.")


@pytest.mark.parametrize("build, old, targets, pattern, saved", [
    (vit, of_vit, ["q_proj", "o_proj", "fc1"], "query", "classifier"),
    (llava, of_llava, ["q_proj", "linear_2"], "q_proj", None), (qwen, of_qwen, ["q_proj", "qkv"], "q_proj", "norm"),
])  # fmt: skip
def test_names_of_transformers_4(build: Callable, old: Callable[[str], str], targets, pattern, saved, tmp_path):
    def made() -> Any:
        torch.manual_seed(0)
        return build()[0].eval()

    batch = build()[1]
    config = peft.LoraConfig(
        r=4, lora_alpha=8, target_modules=targets, bias="all" if saved else "none", rank_pattern={targets[0]: 2},
        modules_to_save=[saved] if saved else None,
    )  # fmt: skip
    theirs = peft.get_peft_model(made(), config)
    with torch.no_grad():
        for p in (p for p in theirs.parameters() if p.requires_grad):
            p.add_(0.1 * torch.randn(p.shape))
        want = theirs.eval()(**batch).logits
    theirs.save_pretrained(tmp_path)
    file, about = tmp_path / "adapter_model.safetensors", tmp_path / "adapter_config.json"
    now = load_file(file)
    tensors = {old(k): v for k, v in now.items()}
    assert tensors.keys() != now.keys()
    save_file(tensors, file)
    config = json.loads(about.read_text())
    config["rank_pattern"] = {pattern: 2}
    about.write_text(json.dumps(config))
    host = cw.Host(made())
    host.import_peft("t", tmp_path)
    with torch.no_grad(), host.route("t"):
        torch.testing.assert_close(host.model(**batch).logits, want, rtol=1e-4, atol=1e-5)
