"""Small hosts with two tenants, and what each reader answers: for the tests of routes."""

from __future__ import annotations

import torch
import transformers as tf
from torch import nn

import commonweight as cw
from tests.laws.subjects import stir
from tests.models import make

NAMES = ("a", "b", None)


def small():
    """A host on two layers, and what each reader answers."""
    torch.manual_seed(0)
    host = cw.Host(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)), sites="*")
    for i, n in enumerate("ab"):
        stir(host.add(n, "lora", rank=2, seed=i), i, 1.0)
    x = torch.randn(2, 8)

    @torch.no_grad()
    def say():
        return host.model(x)

    want = {}
    for n in NAMES:
        with host.route(n):
            want[n] = say()
    assert len({tuple(v.flatten().tolist()) for v in want.values()}) == 3
    return host, say, want


def writer(kind="llama"):
    """A host on a model that generates; prompts of three rows."""
    model, _ = make(kind)
    model.eval()
    host = cw.Host(model)
    for i, n in enumerate("ab"):
        stir(host.add(n, "lora", rank=4), i, 0.5)
    ids = torch.randint(3, 61, (3, 5), generator=torch.Generator().manual_seed(2))
    return host, model, ids


HOW = {"max_new_tokens": 5, "do_sample": False}


def written(host, model, ids, name, **how):
    with host.route(name):
        return model.generate(ids, attention_mask=torch.ones_like(ids), **{**HOW, **how})


def deberta():
    return tf.DebertaV2Model(
        tf.DebertaV2Config(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, vocab_size=61,
            type_vocab_size=0, relative_attention=True, share_att_key=True, pos_att_type=["p2c", "c2p"],
            position_buckets=8, norm_rel_ebd="layer_norm", max_position_embeddings=32, position_biased_input=False,
        )
    )  # fmt: skip
