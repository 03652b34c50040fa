"""Small encoders and their tenants, for the tests of serving."""

from __future__ import annotations

from typing import Any

import torch
import transformers as tf

from commonweight import adapt
from commonweight.host import Host

from . import served

SIZES = {
    "vocab_size": served.VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 48, "max_position_embeddings": 64, "pad_token_id": 0,
}  # fmt: skip


def bert() -> Any:
    torch.manual_seed(3)
    return tf.BertModel(tf.BertConfig(**SIZES), add_pooling_layer=False).eval()


def deberta() -> Any:
    """Its table of relative positions has no rows: a mixed batch runs reader by reader."""
    torch.manual_seed(3)
    return tf.DebertaV2Model(
        tf.DebertaV2Config(**SIZES, relative_attention=True, pos_att_type=["c2p", "p2c"], max_relative_positions=16)
    ).eval()


def qwen3() -> Any:
    """A decoder, whose last token is read."""
    torch.manual_seed(3)
    return tf.Qwen3Model(tf.Qwen3Config(**{**served.SIZES, "head_dim": 8})).eval()


def t5() -> Any:
    """Of which the encoder is kept."""
    torch.manual_seed(3)
    return tf.T5Model(
        tf.T5Config(d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, vocab_size=served.VOCAB, pad_token_id=0)
    ).eval()


MODELS = {"bert": bert, "deberta": deberta, "qwen3": qwen3}


def host(model: Any) -> Host:
    """Tenants of three methods: two with heads of three and five classes, one without a head."""
    found = Host(adapt.Classifier(model).eval())
    found.add("three", "lora", labels=("no", "so", "yes"))
    found.add("five", "ia3", labels=5)
    found.add("plain", "lntuning")
    for name in ("three", "five", "plain"):
        served.stir(found, name)
    return found


def ranker() -> Any:
    """A cross-encoder: one number a pair."""
    torch.manual_seed(3)
    return tf.BertForSequenceClassification(tf.BertConfig(**SIZES, num_labels=1)).eval()


def ranker_host() -> Host:
    return Host(ranker())
