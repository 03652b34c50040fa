"""Small models and tenants that the tests of serving share."""

from __future__ import annotations

from collections.abc import Callable

import torch
import transformers as tf
from torch import nn

import commonweight as cw
from commonweight.host import Host
from commonweight.serve import Answer, Request

from ..device import DEVICE

VOCAB = 97
SIZES = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": VOCAB, "max_position_embeddings": 256, "eos_token_id": 2, "bos_token_id": 1,
    "pad_token_id": 0,
}  # fmt: skip


def llama() -> nn.Module:
    return tf.LlamaForCausalLM(tf.LlamaConfig(**SIZES))


def qwen3() -> nn.Module:
    return tf.Qwen3ForCausalLM(tf.Qwen3Config(**SIZES, head_dim=8))


def gemma3() -> nn.Module:
    return tf.Gemma3ForCausalLM(
        tf.Gemma3TextConfig(**SIZES, head_dim=8, sliding_window=8, layer_types=["sliding_attention", "full_attention"])
    )


def gemma2() -> nn.Module:
    return tf.Gemma2ForCausalLM(tf.Gemma2Config(**SIZES, head_dim=8, sliding_window=8, query_pre_attn_scalar=8))


def gpt2() -> nn.Module:
    return tf.GPT2LMHeadModel(
        tf.GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=VOCAB, n_positions=256, eos_token_id=2, bos_token_id=1)
    )


def phi3() -> nn.Module:
    return tf.Phi3ForCausalLM(tf.Phi3Config(**SIZES))


def mistral() -> nn.Module:
    return tf.MistralForCausalLM(tf.MistralConfig(**SIZES, sliding_window=8))


def mixtral() -> nn.Module:
    return tf.MixtralForCausalLM(tf.MixtralConfig(**SIZES, num_local_experts=4, num_experts_per_tok=2))


FAMILIES: dict[str, Callable[[], nn.Module]] = {
    f.__name__: f for f in (llama, qwen3, gemma3, gemma2, gpt2, phi3, mistral, mixtral)
}


def make(family: str = "llama") -> nn.Module:
    """In eval mode, with weights large enough that answers differ."""
    torch.manual_seed(7)
    model = FAMILIES[family]().eval()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(3) if p.dim() > 1 else p.add_(0.1 * torch.randn_like(p))
    return model.to(DEVICE)


def stir(host: Host, name: str, by: float = 0.2) -> None:
    """Moves a tenant away from its start."""
    g = torch.Generator().manual_seed(host[name].number)
    with torch.no_grad():
        for p in host[name].parameters():
            p.add_(by * torch.randn(p.shape, generator=g).to(p.device))


def add(host: Host, name: str, method: str = "lora", **options: object) -> None:
    host.add(name, method, **options)
    stir(host, name)


def prompt(i: int, length: int | None = None) -> list[int]:
    return [3 + (i * 31 + 7 * j) % (VOCAB - 3) for j in range(length or 4 + 5 * (i % 4))]


def ask(tenant: str | None, i: int = 0, **more: object) -> Request:
    asked = {"max_new_tokens": 6, "temperature": 0, "ignore_eos": True, **more}
    return Request(prompt=asked.pop("prompt", prompt(i)), tenant=tenant, **asked)  # type: ignore[arg-type]


def alone(host: Host, request: Request) -> list[int]:
    """What plain `generate` answers as the tenant; a step at a time without a cache, for tenants that want it so."""
    ids = torch.tensor([list(request.prompt)], device=DEVICE)  # type: ignore[arg-type]
    n = ids.shape[1]
    with torch.no_grad(), host.route(request.tenant):
        for _ in range(request.max_new_tokens):
            logits = host.model(input_ids=ids, use_cache=False).logits[:, -1]
            ids = torch.cat([ids, logits.argmax(1, keepdim=True)], 1)
    return ids[0, n:].tolist()


def right(host: Host, requests: list[Request], answers: list[Answer]) -> None:
    for request, answer in zip(requests, answers, strict=True):
        assert answer.error is None, (request.tenant, answer.error)
        assert answer.tokens == alone(host, request), request.tenant


__all__ = ["FAMILIES", "VOCAB", "add", "alone", "ask", "cw", "make", "prompt", "right", "stir"]
