"""Small random encoders, and encoders before decoders, of the kinds whose rows are counted in different ways."""

from __future__ import annotations

from typing import Any

import torch
import transformers as tf

from tests.models import VOCAB

SIZES = dict(
    hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, vocab_size=VOCAB, pad_token_id=0,
    max_position_embeddings=40,
)  # fmt: skip
HEADS = {**SIZES, "num_key_value_heads": 2, "bos_token_id": 1, "eos_token_id": 2}
MODERN = dict(
    local_attention=4, global_attn_every_n_layers=2, bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2
)
RELATIVE: dict[str, Any] = dict(relative_attention=True, pos_att_type=["p2c", "c2p"])
MOBILE = dict(embedding_size=16, true_hidden_size=16, intra_bottleneck_size=16, num_feedforward_networks=1)
PAIR = dict(
    vocab_size=VOCAB, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
    decoder_attention_heads=4, encoder_ffn_dim=64, decoder_ffn_dim=64, max_position_embeddings=40, pad_token_id=0,
    bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
)  # fmt: skip
T5 = dict(
    vocab_size=VOCAB, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_decoder_layers=2, num_heads=4, pad_token_id=0,
    eos_token_id=2, decoder_start_token_id=0, bos_token_id=1,
)  # fmt: skip
# what positions are: windows and rotations; neighbours; distances; distances and a table; rotations; a mask that is
# read, and vectors that are weighed; blocks of a window that rows are filled up to; numbers without padding
ENCODERS: dict[str, dict[str, Any]] = {
    "ModernBert": {**SIZES, **MODERN}, "MobileBert": {**SIZES, **MOBILE}, "Deberta": {**SIZES, **RELATIVE},
    "DebertaV2": {**SIZES, **RELATIVE, "position_buckets": 8, "conv_kernel_size": 3, "conv_act": "gelu"},
    "MPNet": SIZES, "RoFormer": {**SIZES, "embedding_size": 32}, "EuroBert": HEADS, "NomicBert": HEADS,
    "Esm": {**SIZES, "position_embedding_type": "rotary", "token_dropout": True, "mask_token_id": 2},
    "Longformer": {**SIZES, "attention_window": 4, "bos_token_id": 1, "eos_token_id": 2, "sep_token_id": 2},
    "Luke": {**SIZES, "entity_vocab_size": 10, "entity_emb_size": 8},
    "SqueezeBert": {**SIZES, "embedding_size": 32}, "XLM": {"vocab_size": VOCAB, "emb_dim": 32, "n_layers": 2,
    "n_heads": 4, "max_position_embeddings": 40, "pad_index": 0, "pad_token_id": 0},
}  # fmt: skip
ANYWHERE = "ModernBert", "RoFormer", "EuroBert", "NomicBert", "Esm", "Longformer", "Luke"  # padding on the left is none
PAIRS: dict[str, dict[str, Any]] = {
    "T5": T5, "MT5": T5, "LongT5": {**T5, "local_radius": 3}, "Bart": {**PAIR, "scale_embedding": True}, "MBart": PAIR,
    "Pegasus": {**PAIR, "scale_embedding": True}, "Marian": {**PAIR, "scale_embedding": True, "vocab_size": VOCAB},
    "M2M100": PAIR, "ProphetNet": {**{k: v for k, v in PAIR.items() if not k.endswith("layers")}, "num_buckets": 8,
    "num_encoder_layers": 2, "num_decoder_layers": 2, "num_encoder_attention_heads": 4, "hidden_size": 32,
    "num_decoder_attention_heads": 4, "relative_max_distance": 16},
}  # fmt: skip
GENERATES = {"Marian": "MTModel"}


def made(name: str, head: str | None = None, attention: str | None = None) -> Any:
    torch.manual_seed(0)
    sizes, head = (ENCODERS[name], head or "Model") if name in ENCODERS else (PAIRS[name], head)
    head = head or GENERATES.get(name, "ForConditionalGeneration")
    model = getattr(tf, f"{name}{head}")(getattr(tf, f"{name}Config")(**sizes)).eval()
    if attention is not None:
        model.set_attn_implementation(attention)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(4) if p.dim() > 1 else p.add_(0.1 * torch.randn_like(p))
    return model


def padded(ids: torch.Tensor, lengths: list[int], left: bool = False) -> dict[str, torch.Tensor]:
    mask = torch.zeros_like(ids)
    for row, n in zip(mask, lengths):
        row[slice(len(row) - n, None) if left else slice(n)] = 1
    return {"input_ids": torch.where(mask == 1, ids, 0), "attention_mask": mask}
