"""A few architectures of many, of the kinds that a sweep over all of transformers has shown to differ."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as tf

import commonweight as cw
from tests.host.test_layouts import same
from tests.laws.subjects import stir

COMMON = {
    "vocab_size": 61, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "max_position_embeddings": 32,
}  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {  # states, gates, layers of their own, scaled tables, positions by numbers
    "mamba": {"state_size": 8},
    "falcon_mamba": {"state_size": 8},
    "rwkv": {"attention_hidden_size": 32, "context_length": 16},
    "recurrent_gemma": {"lru_width": 32, "attention_window_size": 8, "block_types": ["recurrent", "attention"]},
    "bamba": {"attn_layer_indices": [1], "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 1,
              "mamba_d_state": 8, "mamba_chunk_size": 4},
    "falcon_h1": {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_d_state": 8, "mamba_d_ssm": 64,
                  "mamba_chunk_size": 4, "head_dim": 8},
    "falcon": {},
    "gemma2": {"head_dim": 8},
    # heads of other widths from layer to layer
    "gemma4_text": {"head_dim": 8, "global_head_dim": 16, "layer_types": ["sliding_attention", "full_attention"],
                    "vocab_size_per_layer_input": 61, "hidden_size_per_layer_input": 8},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32},
    "bloom": {"n_layer": 2, "n_head": 4},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "mamba2": {"state_size": 8, "num_heads": 8, "head_dim": 8, "n_groups": 1, "expand": 2, "chunk_size": 4},
    "qwen3_next": {"layer_types": ["linear_attention", "full_attention"], "head_dim": 8, "num_experts": 0,
                   "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8,
                   "linear_value_head_dim": 8},
}  # fmt: skip


def made(kind: str) -> Any:
    torch.manual_seed(0)
    config = tf.AutoConfig.for_model(kind, **{**COMMON, **KINDS[kind]})
    model = tf.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.02 * torch.randn(p.shape))
    return model


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_every_weight_is_read_and_a_mixed_batch_is_its_rows(kind):
    if kind not in tf.CONFIG_MAPPING:
        pytest.skip(f"this transformers has no {kind}")
    host = cw.Host(made(kind))
    assert 0 < host.coverage().share <= 1
    stir(host.add("t", "lora", rank=2), std=0.1)
    stir(host.add("u", "full", sites="*"), 1, std=0.02)
    assert host.coverage("u").share > 0.999
    ids = torch.randint(3, 60, (3, 8), generator=torch.Generator().manual_seed(1))
    alone = same(host, lambda m: m(ids).logits, ["t", None, "u"], lambda: made(kind), rtol=1e-3, atol=1e-4)
    assert (alone["t"] - alone[None]).abs().max() > 1e-4


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["mamba", "mamba2", "bamba", "falcon_h1", "lfm2", "qwen3_next"])
@pytest.mark.parametrize("method", ["bottleneck", "smore"])
@torch.no_grad()
def test_padding_that_a_mixer_has_emptied_stays_empty(kind, method):
    """An adapter that gives something of nothing would bring padding into a convolution, and a state, of what comes
    after it: rows padded on the left are the rows alone."""
    if kind not in tf.CONFIG_MAPPING:
        pytest.skip(f"this transformers has no {kind}")
    host = cw.Host(made(kind))
    mixers = {n for n, at in host.base.modules.items() if at.kind == "linear" and n in host.base.emptied}
    for i, n in enumerate("tu"):
        stir(host.add(n, method, sites=lambda name, _: name in mixers), i, std=0.3)
    assert {*host["t"].table} == mixers
    ids = torch.randint(3, 60, (3, 8), generator=torch.Generator().manual_seed(1))
    padded, mask = torch.zeros(3, 11, dtype=torch.long), torch.zeros(3, 11, dtype=torch.long)
    padded[:, 3:], mask[:, 3:] = ids, 1
    for route in ("t", ["t", None, "u"]):
        with host.route(route):
            wanted = host.model(ids).logits
            got = host.model(padded, attention_mask=mask).logits[:, 3:]
        torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_a_batch_that_a_model_mixes_itself_is_refused():
    """RWKV that goes on from a state by one token: rows alone are right, and so is a batch without a state."""
    host = cw.Host(made("rwkv"))
    stir(host.add("t", "lora", rank=2), std=0.1)
    ids = torch.randint(3, 60, (2, 6), generator=torch.Generator().manual_seed(1))
    options: dict[str, Any] = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    for route in ("t", ["t", None]):
        with host.route(route), pytest.raises(cw.CommonweightError, match=r"mixes the 2 rows .* use_cache=False"):
            host.model.generate(ids, **options)
    with host.route(["t", None]):
        got = host.model.generate(ids, use_cache=False, **options)
    for i, route in enumerate(["t", None]):
        with host.route(route):
            torch.testing.assert_close(host.model.generate(ids[i : i + 1], **options)[0], got[i])


@torch.no_grad()
def test_a_part_that_reads_the_token_before_is_given_all_tokens():
    host = cw.Host(made("rwkv"))
    tenant = stir(host.add("t", "dyt", size=4), std=0.3)
    for bias in (-50.0, 0.0):
        for n, p in tenant.pools.items():
            if n.endswith("select_bias"):
                p.fill_(bias)
        ids = torch.randint(3, 60, (2, 6), generator=torch.Generator().manual_seed(1))
        with host.route("t"):
            got = host.model(ids, use_cache=False).logits
            with torch.enable_grad():
                wanted = host.model(ids, use_cache=False).logits
        torch.testing.assert_close(got, wanted.detach())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["mamba", "falcon_mamba", "recurrent_gemma", "bamba", "falcon_h1", "lfm2"])
def test_a_mixed_batch_generates_where_a_convolution_is_read_past_its_module(kind):
    """With states kept from step to step, so that the batch cannot be cut."""
    if kind not in tf.CONFIG_MAPPING:
        pytest.skip(f"this transformers has no {kind}")
    host = cw.Host(made(kind))
    for i, n in enumerate("tu"):
        stir(host.add(n, "lora", rank=2), i, std=0.1)
    assert any(s.kind == "conv" for s in host["t"].sites)
    ids = torch.randint(3, 60, (3, 8), generator=torch.Generator().manual_seed(1))
    options: dict[str, Any] = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    names = ["t", None, "u"]
    with host.route(names):
        got = host.model.generate(ids, **options)
        loss = host.model(ids).logits.square().mean()
    assert not host.model.forward.apart
    loss.backward()
    assert all(p.grad is not None for n in "tu" for p in host[n].parameters())
    for i, n in enumerate(names):
        with host.route(n):
            assert torch.equal(host.model.generate(ids[i : i + 1], **options)[0], got[i])
