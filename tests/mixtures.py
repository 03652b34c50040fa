"""Tiny mixtures of experts, one of each layout that transformers has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers as tf
from torch import Tensor, nn

from .models import VOCAB

SIZES: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": VOCAB,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def mixtral() -> nn.Module:
    return tf.MixtralForCausalLM(
        tf.MixtralConfig(intermediate_size=48, num_local_experts=4, num_experts_per_tok=2, **SIZES)
    )


def qwen2_moe() -> nn.Module:
    return tf.Qwen2MoeForCausalLM(tf.Qwen2MoeConfig(
        intermediate_size=64, moe_intermediate_size=24, shared_expert_intermediate_size=24, num_experts=4,
        num_experts_per_tok=2, **SIZES,
    ))  # fmt: skip


def qwen3_moe() -> nn.Module:
    return tf.Qwen3MoeForCausalLM(tf.Qwen3MoeConfig(
        intermediate_size=64, moe_intermediate_size=24, num_experts=4, num_experts_per_tok=2, head_dim=8, **SIZES
    ))  # fmt: skip


def deepseek_v3() -> nn.Module:
    return tf.DeepseekV3ForCausalLM(tf.DeepseekV3Config(
        intermediate_size=64, moe_intermediate_size=24, n_routed_experts=4, num_experts_per_tok=2, n_group=2,
        topk_group=1, first_k_dense_replace=1, q_lora_rank=16, kv_lora_rank=16, qk_rope_head_dim=8, qk_nope_head_dim=8,
        v_head_dim=8, **{**SIZES, "num_key_value_heads": 4},
    ))  # fmt: skip


def glm4_moe() -> nn.Module:
    return tf.Glm4MoeForCausalLM(tf.Glm4MoeConfig(
        intermediate_size=64, moe_intermediate_size=24, n_routed_experts=4, num_experts_per_tok=2, n_group=1,
        topk_group=1, first_k_dense_replace=1, head_dim=8, **SIZES,
    ))  # fmt: skip


def olmoe() -> nn.Module:
    return tf.OlmoeForCausalLM(tf.OlmoeConfig(intermediate_size=24, num_experts=4, num_experts_per_tok=2, **SIZES))


def llama4() -> nn.Module:
    return tf.Llama4ForCausalLM(tf.Llama4TextConfig(
        intermediate_size=24, intermediate_size_mlp=48, num_local_experts=4, num_experts_per_tok=1, head_dim=8,
        moe_layers=[0, 1], attn_temperature_tuning=False, **SIZES,
    ))  # fmt: skip


def gpt_oss() -> nn.Module:
    return tf.GptOssForCausalLM(tf.GptOssConfig(
        intermediate_size=48, num_local_experts=4, num_experts_per_tok=2, head_dim=8,
        layer_types=["full_attention"] * 2, **SIZES,
    ))  # fmt: skip


def dbrx() -> nn.Module:
    return tf.DbrxForCausalLM(tf.DbrxConfig(
        d_model=32, n_heads=4, n_layers=2, vocab_size=VOCAB, max_seq_len=64, pad_token_id=0, bos_token_id=1,
        eos_token_id=2, attn_config={"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
        ffn_config={"hidden_size": 32, "ffn_hidden_size": 24, "moe_num_experts": 4, "moe_top_k": 2},
    ))  # fmt: skip


def minimax() -> nn.Module:
    return tf.MiniMaxForCausalLM(tf.MiniMaxConfig(
        intermediate_size=48, num_local_experts=4, num_experts_per_tok=2, head_dim=8, block_size=4,
        layer_types=["linear_attention", "full_attention"], **SIZES,
    ))  # fmt: skip


MIXTURES: dict[str, Callable[[], nn.Module]] = {
    "mixtral": mixtral, "qwen2_moe": qwen2_moe, "qwen3_moe": qwen3_moe, "deepseek_v3": deepseek_v3,
    "glm4_moe": glm4_moe, "olmoe": olmoe, "llama4": llama4, "gpt_oss": gpt_oss,
    "dbrx": dbrx,
}  # fmt: skip


def _sized(kind: str) -> Callable[[], nn.Module]:
    """With experts of a width that blocks of 32 fit into."""
    if kind == "mixtral":
        config: Any = tf.MixtralConfig(intermediate_size=32, num_local_experts=4, num_experts_per_tok=2, **SIZES)
        return lambda: tf.MixtralForCausalLM(config)
    config = gpt_oss().config
    config.intermediate_size = 64
    return lambda: tf.GptOssForCausalLM(config)


def mixture(kind: str, implementation: str | None = None) -> tuple[nn.Module, dict[str, Tensor]]:
    """(model in eval mode whose experts, routers and biases are off their trivial start, a batch of four rows)."""
    make = _sized(kind.removesuffix("_32")) if kind.endswith("_32") else {"minimax": minimax, **MIXTURES}[kind]
    torch.manual_seed(0)
    model: Any = make().eval()
    with torch.no_grad():
        for n, p in model.named_parameters():
            if "experts" in n or "router" in n or "gate" in n:
                p.normal_(0, 0.2)
    if implementation is not None:
        model.set_experts_implementation(implementation)
    ids = torch.randint(3, VOCAB, (4, 6), generator=torch.Generator().manual_seed(1))
    return model, {"input_ids": ids}
