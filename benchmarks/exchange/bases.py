"""The two bases of the measurements: MiniLM, and a small one beside which a client's own cost is seen."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoTokenizer, BertConfig, BertModel

from ..shapes import minilm_folder

NAMES = {"minilm": "MiniLM", "small": "a random BERT of 2 layers, 64 wide"}


def folder(name: str, at: Path) -> Path:
    """The folder of a base; the small one is written to `at`, with random weights and MiniLM's tokenizer."""
    if name == "minilm":
        return minilm_folder()
    to = at / "base"
    tokenizer = AutoTokenizer.from_pretrained(minilm_folder())
    torch.manual_seed(0)
    size = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4)
    BertModel(BertConfig(**size, vocab_size=len(tokenizer), max_position_embeddings=128)).save_pretrained(to)
    tokenizer.save_pretrained(to)
    return to
