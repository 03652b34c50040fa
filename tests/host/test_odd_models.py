"""Models of transformers that do by themselves what others leave to torch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as tf
from torch import nn

import commonweight as cw
from tests.host.test_layouts import same
from tests.laws.subjects import stir

IDS = torch.randint(3, 61, (4, 16), generator=torch.Generator().manual_seed(1))


def reformer() -> Any:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "attention_head_size": 8, "hidden_size": 32, "num_attention_heads": 4, "vocab_size": 61,
        "feed_forward_size": 48,
        "axial_pos_shape": (4, 4), "axial_pos_embds_dim": (16, 16), "max_position_embeddings": 16, "is_decoder": True,
        "attn_layers": ["local", "local"], "local_attn_chunk_length": 4, "hidden_dropout_prob": 0.0,
        "local_attention_probs_dropout_prob": 0.0,
    }  # fmt: skip
    return tf.ReformerModelWithLMHead(tf.ReformerConfig(**sizes))


def test_layers_that_are_run_backwards_give_gradients_of_their_own_route():
    """A backward pass outside of the route, and within another one."""
    host = cw.Host(reformer().train())
    model = host.base.model
    t, u = stir(host.add("t", "lora", rank=2), std=0.3), stir(host.add("u", "lora", rank=2), 1, std=0.3)
    with host.route("t"):
        loss = model(IDS).logits.square().mean()
    with host.route("u"):
        model(IDS)
        loss.backward()
    assert all(p.grad is None or not p.grad.any() for p in u.parameters())
    for name, p in t.named_parameters():
        if p.grad is not None and ("query.A" in name or "value.B" in name):
            at, near = int(p.grad.abs().argmax()), []
            for step in (0.01, -0.01):
                with torch.no_grad(), host.route("t"):
                    p.data.view(-1)[at] += step
                    near.append(model(IDS).logits.square().mean())
                    p.data.view(-1)[at] -= step
            torch.testing.assert_close((near[0] - near[1]) / 0.02, p.grad.view(-1)[at], rtol=0.05, atol=1e-6)


def test_reformer_wants_training_mode_as_without_a_host():
    host = cw.Host(reformer().eval())
    host.add("t", "lora", rank=2)
    with host.route("t"), pytest.raises(AssertionError, match=r"use `model.train\(\)`"):
        host.base.model(IDS).logits.sum().backward()


def fsmt() -> Any:
    torch.manual_seed(0)
    sizes = {f"{side}_{n}": v for side in ("encoder", "decoder") for n, v in
             (("ffn_dim", 48), ("layers", 2), ("attention_heads", 4))}  # fmt: skip
    config = tf.FSMTConfig(langs=["en", "de"], src_vocab_size=61, tgt_vocab_size=61, d_model=32, **sizes)  # type: ignore[arg-type]
    model = tf.FSMTForConditionalGeneration(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(0, 0.2) if p.dim() > 1 else p
    return model


@pytest.mark.parametrize("given", [{}, {"use_cache": False}, {"return_dict": False}])
def test_a_model_that_answers_otherwise_with_a_cache_does_so_in_a_mixed_batch(given):
    """FSMT leaves out the mask of what comes later where it keeps a cache, which it does by default."""
    host = cw.Host(fsmt())
    stir(host.add("t", "lora", rank=2), std=0.1)
    stir(host.add("u", "lora", rank=2), 1, std=0.1)
    ids, said = IDS[:3, :7], IDS[:3, 7:12]
    same(host, lambda m: m(input_ids=ids, decoder_input_ids=said, **given)[0], ["t", None, "u"], fsmt)


class Bare(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.gain = nn.LayerNorm(8), nn.Parameter(torch.ones(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x) * self.gain


def test_a_method_that_finds_no_site_reads_nothing_and_is_told_so():
    host = cw.Host(Bare())
    found = host.coverage("lora")
    assert (found.read, found.total) == (0, 24) and found.line.startswith("lora reads 0.0% of the weights; left out:")
    assert host.coverage("tokens").read == 0 and host.coverage("full").share == 1
    with pytest.raises(cw.CommonweightError, match=r"this model has none of them by default; its sites are of kind"):
        host.add("t", "lora")
    with pytest.raises(cw.CommonweightError, match="matches no site"):
        host.coverage("lora", sites="*.q_proj")
