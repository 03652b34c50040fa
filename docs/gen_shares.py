"""The table of shares in docs/sites.md: how much of small random models a tenant reads.

python docs/gen_shares.py --write
python docs/gen_shares.py --check    # exit code 1 when the table is not current
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import generated
import transformers as tf

import commonweight as cw

PAGE = Path(__file__).with_name("sites.md")
_LM: dict[str, Any] = {
    "vocab_size": 256, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_TOWER: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4
}  # fmt: skip
_IMAGE: dict[str, Any] = {**_TOWER, "image_size": 32, "patch_size": 8}

# as it was when a host took linear layers alone, of models of these kinds
BEFORE = {
    "Mixtral": 10, "gpt-oss": 10, "Qwen3-MoE": 16, "DeepSeek-V3": 42, "ResNet": 2, "ViT": 68, "CLIP": 68, "Mamba2": 64,
}  # fmt: skip


def models() -> dict[str, Any]:
    deepseek = {"n_routed_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "n_group": 1,
                "topk_group": 1, "first_k_dense_replace": 1, "kv_lora_rank": 16, "q_lora_rank": 16,
                "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 16, "num_key_value_heads": 4}  # fmt: skip
    text = {**_TOWER, "vocab_size": 256, "max_position_embeddings": 32, "bos_token_id": 1, "eos_token_id": 2}
    mamba = {"vocab_size": 256, "hidden_size": 64, "state_size": 16, "num_hidden_layers": 2, "num_heads": 8,
             "head_dim": 16, "n_groups": 1, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
    return {
        "Mixtral": tf.MixtralForCausalLM(tf.MixtralConfig(**_LM, num_local_experts=8, num_experts_per_tok=2)),
        "gpt-oss": tf.GptOssForCausalLM(
            tf.GptOssConfig(**_LM, head_dim=16, num_local_experts=8, num_experts_per_tok=2)
        ),
        "Qwen3-MoE": tf.Qwen3MoeForCausalLM(
            tf.Qwen3MoeConfig(**_LM, head_dim=16, num_experts=8, num_experts_per_tok=2, moe_intermediate_size=64)
        ),
        "DeepSeek-V3": tf.DeepseekV3ForCausalLM(tf.DeepseekV3Config(**{**_LM, **deepseek})),
        "ResNet": tf.ResNetForImageClassification(
            tf.ResNetConfig(embedding_size=16, hidden_sizes=[32, 64], depths=[2, 2], num_labels=10)
        ),
        "ViT": tf.ViTForImageClassification(tf.ViTConfig(**_IMAGE, num_labels=10)),
        "CLIP": tf.CLIPModel(tf.CLIPConfig(text_config=text, vision_config=_IMAGE, projection_dim=64)),
        "Mamba2": tf.Mamba2ForCausalLM(tf.Mamba2Config(**mamba)),
    }


def table() -> str:
    lines = [
        '| model | before | `host.coverage()` | `lora` by default | `full`, sites="*" |',
        "| --- | --- | --- | --- | --- |",
    ]
    for name, model in models().items():
        host = cw.Host(model.eval())
        found = [host.coverage(), host.coverage("lora"), host.coverage("full", "*")]
        lines.append(
            f"| {name} | {BEFORE[name]} % | " + " | ".join(f"{f.share:.0%}".replace("%", " %") for f in found) + " |"
        )
    return "\n".join(lines)


def pages() -> generated.Pages:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return generated.parts(PAGE, {"shares": table})


if __name__ == "__main__":
    sys.exit(generated.main(pages, sys.argv[1:], __doc__))
