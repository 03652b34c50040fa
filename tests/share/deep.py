"""Small models of six blocks, each block with numbers of its own."""

from __future__ import annotations

from typing import Any

import torch
import transformers as tf

SIZE: dict[str, Any] = dict(hidden_size=32, intermediate_size=64, num_attention_heads=4, vocab_size=61)
TOKENS: dict[str, Any] = dict(pad_token_id=0, bos_token_id=1, eos_token_id=2)
IDS = torch.randint(3, 61, (2, 7), generator=torch.Generator().manual_seed(1))


def llama(depth: int = 6, **more: Any) -> Any:
    return _own(
        lambda: tf.LlamaForCausalLM(
            tf.LlamaConfig(num_hidden_layers=depth, num_key_value_heads=2, **SIZE, **TOKENS, **more)
        )
    )


def qwen(depth: int = 6) -> Any:
    """With layer_types in its config and tied embeddings."""
    return _own(
        lambda: tf.Qwen3ForCausalLM(
            tf.Qwen3Config(
                num_hidden_layers=depth, num_key_value_heads=2, head_dim=8, tie_word_embeddings=True, **SIZE, **TOKENS
            )
        )
    )


def gpt2(depth: int = 6) -> Any:
    config = tf.GPT2Config(n_embd=32, n_layer=depth, n_head=4, vocab_size=61, n_positions=32, **TOKENS)
    return _own(lambda: tf.GPT2LMHeadModel(config))


def bert(depth: int = 6) -> Any:
    return _own(lambda: tf.BertModel(tf.BertConfig(num_hidden_layers=depth, max_position_embeddings=32, **SIZE)))


KINDS = {"llama": llama, "qwen": qwen, "gpt2": gpt2, "bert": bert}


def _own(make: Any) -> Any:
    torch.manual_seed(0)
    model = make().eval()
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() == 1:
                p.add_(0.1 * torch.randn_like(p))
    return model


def answer(model: Any) -> torch.Tensor:
    with torch.no_grad():
        out = model(IDS)
    return out.logits if "logits" in out else out.last_hidden_state


def far(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max())
