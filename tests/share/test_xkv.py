"""Keys and values of neighbouring layers in one subspace: the approximation by hand, exact cases, bytes, generate."""

from typing import Any

import pytest
import torch
import transformers as tf

from commonweight import CommonweightError, share
from commonweight.share import xkv
from tests.share.deep import SIZE, TOKENS, far, gpt2, llama, qwen

LONG = torch.randint(3, 61, (2, 24), generator=torch.Generator().manual_seed(0))


def rotated(k, base=10000.0):
    """RoPE of (B, T, heads, d), written out pair by pair."""
    out, d = torch.empty_like(k), k.shape[-1]
    for t in range(k.shape[1]):
        for i in range(d // 2):
            angle = torch.tensor(t * base ** (-2 * i / d))
            a, b = k[:, t, :, i], k[:, t, :, i + d // 2]
            out[:, t, :, i] = a * angle.cos() - b * angle.sin()
            out[:, t, :, i + d // 2] = b * angle.cos() + a * angle.sin()
    return out


def test_the_approximation_by_hand():
    """Of the keys before RoPE of layers 0 to 2, and of 3 and 4, by the eigenvectors of their Gram matrix."""
    model, got = llama(5), {}
    for i, block in enumerate(model.model.layers):
        for n in "kv":
            layer = getattr(block.self_attn, f"{n}_proj")
            layer.register_forward_hook(lambda _, __, y, key=(n, i): got.setdefault(key, y))
    cache: Any = xkv.XKV(model, group=3, rank_k=5, rank_v=4)
    with torch.no_grad():
        exact = model(LONG).logits
        got.clear()
        assert far(model(LONG, past_key_values=cache).logits, exact) < 1e-5  # of the prompt itself
        for layers in ((0, 1, 2), (3, 4)):
            for n, rank in (("k", 5), ("v", 4)):
                x = torch.cat([got[n, i] for i in layers], -1)
                v = torch.linalg.eigh(x.double().mT @ x.double())[1][..., -rank:].float()
                for i, part in zip(layers, (x @ v @ v.mT).split(16, -1)):
                    want = part.unflatten(-1, (2, 8))
                    want = (rotated(want) if n == "k" else want).transpose(1, 2)
                    whole = cache.layers[i].whole("keys" if n == "k" else "values")
                    assert torch.allclose(whole, want, atol=1e-4), (n, i)


def low(model, rank):
    """Keys and values of a rank: every layer's are a few directions of its input."""
    with torch.no_grad():
        for block in model.model.layers:
            for layer in (block.self_attn.k_proj, block.self_attn.v_proj):
                u, s, v = torch.linalg.svd(layer.weight)
                layer.weight.copy_((u[:, :rank] * s[:rank]) @ v[:rank])
    return model


@pytest.mark.parametrize("options", [{"rank_k": 4, "rank_v": 4}, {"rank_k": None, "rank_v": None}])
def test_at_the_full_rank_it_is_exact(options):
    model = low(llama(4), 2)
    cache: Any = xkv.XKV(model, group=2, **options)
    with torch.no_grad():
        model(LONG[:, :16], past_key_values=cache)
        got = model(LONG[:, 16:], past_key_values=cache).logits
        want = model(LONG).logits[:, 16:]
    assert far(got, want) < 2e-5
    shared = options["rank_k"] is not None
    assert all((g.k.basis is not None) == shared for g in cache.groups)


def test_bytes_are_those_of_the_plan():
    model = llama(5)
    for options in ({}, {"rank_k": 4, "rank_v": 3}, {"group": 2, "rank_k": 2, "rank_v": None}):
        cache: Any = xkv.XKV(model, **options)
        with torch.no_grad():
            model(LONG, past_key_values=cache)
        ours, plain = xkv.plan(model, 24, **options)
        assert plain == 2 * 5 * 24 * 16 * 4
        if len({"rank_k"} & options.keys()) == 0:
            assert cache.nbytes == 2 * plain == 2 * ours
            continue
        basis = [p.basis.shape for g in cache.groups for p in (g.k, g.v) if p.basis is not None]
        maps = sum(m[0].numel() for g in cache.groups for p in (g.k, g.v) for m in p.maps)
        own = sum(t[0].numel() for layer in cache.layers for t in (layer.keys, layer.values))
        assert 4 * (sum(s[1] * s[2] for s in basis) + maps + own) == ours < plain
        assert cache.nbytes == 2 * ours


@pytest.mark.parametrize("make", [llama, qwen, gpt2])
def test_generate(make):
    """Where nothing is left out the answers are the plain cache's; otherwise it still answers."""
    model = make()
    ids = LONG[:, :6]
    how = dict(max_new_tokens=6, do_sample=False, pad_token_id=0)
    cache: Any = xkv.XKV(model, group=2, rank_k=None, rank_v=None)
    assert torch.equal(model.generate(ids, past_key_values=cache, **how), model.generate(ids, **how))
    low_: Any = xkv.XKV(model, group=3, rank_k=3, rank_v=3)
    out = model.generate(ids, past_key_values=low_, **how)
    assert out.shape == (2, 12) and low_.get_seq_length() == 11
    assert all(g.k.basis.shape == (2, 6, 3) for g in low_.groups)


def test_rows_are_copied_chosen_and_cut():
    model = low(llama(4), 2)
    cache: Any = xkv.XKV(model, group=2, rank_k=4, rank_v=4)
    with torch.no_grad():
        model(LONG[:, :16], past_key_values=cache)
        model(LONG[:, 16:18], past_key_values=cache)
        cache.batch_repeat_interleave(2)
        cache.reorder_cache(torch.tensor([3, 0, 2, 1]))
        cache.batch_select_indices(torch.tensor([0, 1]))  # the second row, then the first
        cache.crop(-5)
        assert cache.get_seq_length() == 13
        got = model(LONG.flip(0)[:, 13:], past_key_values=cache).logits
        assert far(got, model(LONG.flip(0)).logits[:, 13:]) < 2e-5
    cache.reset()
    assert cache.get_seq_length() == 0


def test_left_padding_moves_positions_alone():
    """All tokens of a row turned once more are approximated as before."""
    model = low(llama(4), 2)
    ids = torch.cat([torch.zeros(1, 3, dtype=torch.long), LONG[:1, :18]], 1)
    mask = (torch.arange(21) >= 3).long()[None]
    at = (mask.cumsum(-1) - 1).clamp_min(0)
    cache: Any = xkv.XKV(model, group=2, rank_k=4, rank_v=4)
    with torch.no_grad():
        model(ids[:, :18], attention_mask=mask[:, :18], position_ids=at[:, :18], past_key_values=cache)
        got = model(ids[:, 18:], attention_mask=mask, position_ids=at[:, 18:], past_key_values=cache).logits
        want = model(LONG[:1, :18]).logits[:, 15:]
    assert far(got, want) < 2e-5


def test_it_takes_shared_models_too():
    small = share.share(llama(), "recursive", loops=2)
    how = dict(max_new_tokens=5, do_sample=False, pad_token_id=0)
    assert torch.equal(small.generate(LONG, past_key_values=xkv.XKV(small), **how), small.generate(LONG, **how))


def test_what_it_refuses():
    mistral = tf.MistralForCausalLM(tf.MistralConfig(num_hidden_layers=1, sliding_window=8, **SIZE, **TOKENS))
    with pytest.raises(CommonweightError, match="has sliding_attention; xKV takes keys and values of every token"):
        xkv.XKV(mistral)
    with pytest.raises(CommonweightError, match="has tokens that skip blocks"):
        xkv.XKV(share.share(llama(), "mor", loops=2))
    with pytest.raises(CommonweightError, match="wanted numbers of at least 1"):
        xkv.XKV(llama(2), group=0)
    dynamic = llama(1, rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0})
    with pytest.raises(CommonweightError, match="depends on the length"):
        xkv.XKV(dynamic)
