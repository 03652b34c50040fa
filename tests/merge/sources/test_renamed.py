"""Files whose tensors are called otherwise than the modules that transformers makes of them."""

from __future__ import annotations

import peft
import pytest
import torch
import transformers as tf
from safetensors.torch import load_file

import commonweight as cw

TEXT = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 32}
VISION = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
SIZE = {"image_size": 8, "patch_size": 4}


def llava():
    text, vision = tf.LlamaConfig(**TEXT), tf.CLIPVisionConfig(**VISION, **SIZE)
    config = tf.LlavaConfig(text_config=text, vision_config=vision, image_token_index=30)
    return tf.LlavaForConditionalGeneration(config)


def qwen():
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2, "out_hidden_size": 16}
    text = {**TEXT, "num_key_value_heads": 2, "rope_parameters": rope}
    config = tf.Qwen2_5_VLConfig(text_config=text, vision_config={**vision, "patch_size": 4}, image_token_id=30)
    return tf.Qwen2_5_VLForConditionalGeneration(config)


@pytest.fixture(params=[llava, qwen], ids=["llava", "qwen"])
def model(request, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tf.utils.logging.disable_progress_bar()
    torch.manual_seed(0)
    made = request.param()
    made.save_pretrained("base")
    return made


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated")
def test_an_adapter_of_peft_and_what_is_extracted_again(model):
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    for name, p in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.1)
    adapted.save_pretrained("lora")
    adapted.merge_and_unload().save_pretrained("wanted")
    cw.merge.make({"method": "linear", "models": ["base+lora"]}, "out")
    wanted = load_file("wanted/model.safetensors")
    for name, t in load_file("out/model.safetensors").items():
        torch.testing.assert_close(t, wanted[name], msg=name)
    found = cw.merge.extract("wanted", "base", "again", rank=2)
    assert found.total < 1e-4 and any("language_model" in n for n in found.ranks) and not found.left_out
    cw.merge.make({"method": "linear", "models": ["base+again"]}, "other")
    for name, t in load_file("other/model.safetensors").items():
        torch.testing.assert_close(t, wanted[name], atol=1e-5, rtol=1e-4, msg=name)


def test_a_tenant_of_a_host(model):
    host = cw.Host(model)
    host.add("t", "lora", rank=2, sites="*language_model*q_proj")
    for p in host["t"].pools.values():
        torch.nn.init.normal_(p, std=0.1)
    host.save("t", "t.safetensors")
    wanted = host.merged("t")
    cw.merge.make({"method": "linear", "models": ["base+t.safetensors"]}, "out")
    was, now = load_file("base/model.safetensors"), load_file("out/model.safetensors")
    changed = sorted(n for n in was if not torch.equal(was[n], now[n]))
    assert len(changed) == 1 and changed[0].endswith("q_proj.weight")
    torch.testing.assert_close(now[changed[0]], next(w for n, w in wanted.items() if "language_model" in n))
