"""Small, randomly initialised models of every kind that the laws run over."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import transformers as tf
from torch import Tensor, nn

from tests.device import DEVICE

B, T, VOCAB = 4, 6, 61


def _ids(model: nn.Module) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(1)
    return {"input_ids": torch.randint(3, VOCAB, (B, T), generator=g)}


def llama() -> nn.Module:
    return tf.LlamaForCausalLM(
        tf.LlamaConfig(
            hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
            vocab_size=VOCAB, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        )
    )  # fmt: skip


def qwen() -> nn.Module:
    return tf.Qwen2ForCausalLM(
        tf.Qwen2Config(
            hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
            vocab_size=VOCAB, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        )
    )  # fmt: skip


def gpt2() -> nn.Module:
    return tf.GPT2LMHeadModel(
        tf.GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=VOCAB, n_positions=32, bos_token_id=1, eos_token_id=2)
    )


def bert() -> nn.Module:
    return tf.BertModel(
        tf.BertConfig(
            hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, vocab_size=VOCAB,
            max_position_embeddings=32,
        )
    )  # fmt: skip


def t5() -> nn.Module:
    return tf.T5ForConditionalGeneration(
        tf.T5Config(
            d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, vocab_size=VOCAB, decoder_start_token_id=0,
            pad_token_id=0, eos_token_id=2,
        )
    )  # fmt: skip


def vit() -> nn.Module:
    return tf.ViTModel(
        tf.ViTConfig(
            hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, image_size=8, patch_size=4
        )
    )


def moe() -> nn.Module:
    return tf.MixtralForCausalLM(
        tf.MixtralConfig(
            hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
            num_local_experts=4, num_experts_per_tok=2, vocab_size=VOCAB, pad_token_id=0, bos_token_id=1,
            eos_token_id=2,
        )
    )  # fmt: skip


def mamba() -> nn.Module:
    return tf.MambaForCausalLM(
        tf.MambaConfig(
            hidden_size=32, state_size=4, num_hidden_layers=2, vocab_size=VOCAB, time_step_rank=4, pad_token_id=0,
            bos_token_id=1, eos_token_id=2,
        )
    )  # fmt: skip


class MLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(16, 32), nn.LayerNorm(32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 8)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


KINDS: dict[str, Callable[[], nn.Module]] = {
    "llama": llama, "qwen": qwen, "gpt2": gpt2, "bert": bert, "t5": t5, "vit": vit, "moe": moe, "mlp": MLP,
}  # fmt: skip

ELSE: dict[str, Callable[[], nn.Module]] = {"mamba": mamba}  # for methods that read nothing in those


_MADE: dict[tuple[str, int], tuple[nn.Module, dict[str, Tensor], Tensor]] = {}


def make(kind: str, seed: int = 0) -> tuple[nn.Module, dict[str, Tensor]]:
    """(model in eval mode with norms and biases moved off their trivial start, a batch of B rows). Draws the same
    numbers each time; it copies what it has made before, which is twice as fast."""
    torch.manual_seed(seed)
    if (kind, seed) not in _MADE:
        _MADE[kind, seed] = *_made(kind), torch.get_rng_state()
    model, batch, drawn = _MADE[kind, seed]
    torch.set_rng_state(drawn)
    return copy.deepcopy((model, batch))


def _made(kind: str) -> tuple[nn.Module, dict[str, Tensor]]:
    model = {**KINDS, **ELSE}[kind]().eval()
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() == 1:
                p.add_(0.1 * torch.randn_like(p))
    if kind == "vit":
        batch = {"pixel_values": torch.randn(B, 3, 8, 8)}
    elif kind == "mlp":
        batch = {"x": torch.randn(B, 16)}
    else:
        batch = _ids(model)
        if kind == "t5":
            batch["decoder_input_ids"] = batch["input_ids"].flip(0)
    return model.to(DEVICE), {name: x.to(DEVICE) for name, x in batch.items()}


def shallow(kind: str) -> tuple[nn.Module, dict[str, Tensor]]:
    """As `make`, of one layer: torch's compiler traces each by itself, for seconds."""
    model, batch = make(kind)
    tower: Any
    tower, name = (model.model, "layers") if kind == "llama" else (model.encoder, "layer")
    setattr(tower, name, getattr(tower, name)[:1])
    tower.config.num_hidden_layers = 1
    return model, batch


def answer(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    out = model(**batch)
    if isinstance(out, Tensor):
        return out
    return out.logits if "logits" in out else out.last_hidden_state
